"""Small raw files as the owners distribute them, one function a data set."""

import gzip
import io
import tarfile

import numpy as np
from PIL import Image

from tests.datasets.prepare import scans

DIODE = "{scene:05d}_00193_outdoor_000_{view:03d}"


def image(height, width, seed=0, channels=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def saved(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def side_by_side(root):
    path = root / "edges2handbags.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 3), ("val", 1)):
            for i in range(count):
                file = io.BytesIO()
                image(8, 16, i).save(file, "jpeg")
                member = tarfile.TarInfo(f"edges2handbags/{part}/{i}_AB.jpg")
                member.size = len(file.getvalue())
                tar.addfile(member, io.BytesIO(file.getvalue()))
    return path


def unit(height, width, seed):
    """Normals of length 1; those of the first row are unknown."""
    vectors = np.random.default_rng(seed).normal(size=(height, width, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[0] = 0
    return vectors.astype(np.float32)


def diode(root, scenes=4):
    """The archives, extracted into one folder: scenes 0, ... in train, the last in val."""
    for scene in range(scenes):
        for view in (0, 10):
            part = "val" if scene == scenes - 1 else "train"
            path = (
                root / "diode" / part / f"outdoor/scene_{scene:05d}/scan_00193" / DIODE.format(scene=scene, view=view)
            )
            saved(path.with_name(path.name + ".png"), image(6, 8, scene))
            np.save(path.with_name(path.name + "_normal.npy"), unit(6, 8, scene))
            depth = np.random.default_rng(scene).uniform(1, 300, (6, 8, 1)).astype(np.float32)
            np.save(path.with_name(path.name + "_depth.npy"), depth)
            np.save(path.with_name(path.name + "_depth_mask.npy"), (depth[..., 0] < 200).astype(np.float32))
    return root / "diode"


def idx(values):
    """The bytes of an IDX file of unsigned bytes (LeCun): 0, 0, 8, dimensions; sizes as big-endian int32; values."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def digits(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10


def mnist(root, sizes=(("train", 12), ("t10k", 4))):
    folder = root / "mnist"
    folder.mkdir(parents=True)
    for start, count in sizes:
        images, labels = digits(count, len(start))
        (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{start}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def lysto(root, count=16, size=24, **keys):
    import h5py

    path = root / "training.h5"
    organs = np.array(
        [f"{organ}_1" for organ in ("breast", "colon", "prostate", "colon") for _ in range(count // 4)], "S"
    )
    values = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    with h5py.File(path, "w") as file:
        for key, value in ({"x": values, "y": np.arange(count), "organ": organs} | keys).items():
            if value is not None:
                file[key] = value
    return path


def photographs(root):
    for i in range(5):
        saved(root / "photos" / f"{'ab'[i % 2]}/{i}.png", image(12, 16, i))
    return root / "photos"


def stains(root, size=16, count=4):
    """Two stains of the same sections: the target is the negative of the source. No pixel is glass or margin."""
    for part in ("train", "test"):
        for i in range(count):
            pixels = np.random.default_rng([i, len(part)]).integers(60, 196, (size, size, 3), np.uint8)
            for side, values in (("HE", pixels), ("IHC", 255 - pixels)):
                saved(root / "bci" / side / part / f"p{i // 2}_{i}_{part}_1+.png", Image.fromarray(values))
    return root / "bci"


def fives(root, size=16):
    """Photographs and masks of vessels, here where they are bright, as RGB of 0 and 255."""
    for part, count in (("train", 5), ("test", 2)):
        for i in range(1, count + 1):
            photo = image(size, size, 100 * len(part) + i)
            vessels = np.repeat(np.asarray(photo)[..., :1] > 127, 3, -1)
            saved(root / "fives" / part / "Original" / f"{i}_A.png", photo)
            saved(
                root / "fives" / part / "Ground truth" / f"{i}_A.png", Image.fromarray(vessels.astype(np.uint8) * 255)
            )
    return root / "fives"


MAP = np.array([[1.0, 0.1, 2.0], [-0.1, 1.0, 4.0]])  # (x, y, 1) of the target -> (x, y) of the source


def landmarks(path, points):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",X,Y\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(points)))


def ramp(x, y):
    """A smooth picture, linear in x and y, so that bilinear sampling is exact."""
    return np.stack([60 + 2 * x, 60 + 2 * y, np.full_like(x, 100)], -1)


def anhir(root, sets=4, size=40):
    """Sections of which the source is the target under MAP; landmarks on a grid, and a glass margin on the right.

    The landmarks end at row 30, and the source has a hole of glass where the target has none.
    """
    for n in range(sets):
        folder = f"lung-lesion_{n}/scale-50pc"
        x, y = np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float))
        target = ramp(*np.einsum("ij,jhw->ihw", MAP, np.stack([x, y, np.ones_like(x)])))
        target[:, 32:] = 250
        xs, ys = np.meshgrid(np.arange(60, dtype=float), np.arange(60, dtype=float))
        source = ramp(xs, ys)
        source[21:35, 22:37] = 250
        for stain, picture in (("He", source), ("proSPC", target)):
            name = f"29-041-Izd2-w35-{stain}-{n}-les1"
            saved(
                root / f"anhir/images/{folder}/{name}.png",
                Image.fromarray(np.rint(picture).clip(0, 255).astype(np.uint8)),
            )
            points = np.array([(i, j) for i in (0, 15, 39) for j in (0, 20, 30)], float)
            there = points if stain == "proSPC" else points @ MAP[:, :2].T + MAP[:, 2]
            landmarks(root / f"anhir/landmarks/{folder}/{name}.csv", there)
    return root / "anhir"


# name -> what writes its raw files and returns --source, and the flags that suit their size
RAWS = {
    "edges2handbags": (side_by_side, ""),
    "facades": (side_by_side, ""),
    "diode": (diode, ""),
    "rotated_mnist": (mnist, ""),
    "bci": (stains, "--image_size 8 --group_by ^(p[0-9])"),
    "fives": (fives, "--image_size 8"),
    "anhir": (anhir, "--image_size 16"),
    "ct_pet": (scans.ct_pet, "--image_size 8"),
    "mr_ct": (scans.mr_ct, "--image_size 8 --neighbours 1"),
    "lysto": (lysto, "--image_size 8 --run 2"),
    "degrade": (photographs, "--degrade blur:1,noise:20"),
}
