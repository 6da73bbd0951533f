"""Small raw files as the owners distribute them, one function a data set."""

import gzip
import io
import tarfile

import numpy as np
from PIL import Image

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


# name -> what writes its raw files and returns --source, and the flags that suit their size
RAWS = {
    "edges2handbags": (side_by_side, ""),
    "facades": (side_by_side, ""),
    "diode": (diode, ""),
    "rotated_mnist": (mnist, ""),
    "lysto": (lysto, "--image_size 8 --run 2"),
    "degrade": (photographs, "--degrade blur:1,noise:20"),
}
