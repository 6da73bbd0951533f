"""Every way to write images is read as the data sets read it, or refused with the reason; pairs find each other."""

import hashlib
import itertools
import json
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddbm.files import npz
from evaluations.evaluator import evaluate, main
from evaluations.images import as_images, as_pairs, file_name, load_images, order_digest
from evaluations.references import load_reference
from scripts import make_reference

IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def pixels(images):
    return next(images.walk(len(images)))


def folder(path, names, images=IMAGES):
    for name, image in zip(names, images, strict=True):
        (path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{name}.png")
    return load_images(path)


def packed(path, images=IMAGES, **more):
    np.savez(path, arr_0=images, **more)
    return load_images(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_batches_of_every_rank(tmp_path, save, fortran):
    """From an npz, a folder and an array alike: all images once, in their order, in the same batches."""
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", np.asfortranarray(images) if fortran else images)
    files = folder(tmp_path / "folder", [f"{n:02}" for n in range(11)], images)
    sets = [load_images(tmp_path / "a.npz"), files, as_images(images, "sample")]
    for loaded, ranks in itertools.product(sets, (1, 2, 8)):
        assert loaded.shape == images.shape and len(loaded) == 11
        walks = [list(loaded.walk(2, rank, ranks) if ranks > 1 else loaded.walk(2)) for rank in range(ranks)]
        batches = [walks[n % ranks][n // ranks] for n in range(6)]
        assert sum(map(len, walks)) == 6 and [len(batch) for batch in batches] == [2] * 5 + [1]
        np.testing.assert_array_equal(np.concatenate(batches), images)
        assert all(batch.flags.writeable or loaded is sets[2] for batch in batches)  # torch takes no other
    assert len({loaded.digest for loaded in sets}) == 1
    assert sets[0].digest == hashlib.sha256(b"(11, 4, 5, 3)" + images.tobytes()).hexdigest()


def test_memory_does_not_grow_with_the_images(tmp_path):
    """12 MB of images: less than 8 MB at any time."""
    parts = [np.full((100, 64, 64, 3), n, np.uint8) for n in range(10)]
    npz.write(tmp_path / "a.npz", lambda w, _: w.stream("arr_0", (1000, 64, 64, 3), np.uint8, parts))
    images = load_images(tmp_path / "a.npz")
    evaluate(images, images, ["mse"], batch_size=50)  # whatever is loaded once
    tracemalloc.start()
    try:
        found = evaluate(images, images, ["mse"], batch_size=20)["metrics"]["mse"]
        assert len(images.digest) == 64 and tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert found["mean"] == 0 and found["n"] == 1000 and images.levels == [0, 1, 2, 3]  # in chunks of 2 MiB


def member(header, data=b""):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def lying(shape, data=bytes(100)):
    return member(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n", data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (-np.ones((2, 4, 4, 3), np.float32), r"float32 of shape .* or \(x \+ 1\) \* 127\.5 of \[-1, 1\]"),
        (np.full((2, 4, 4, 3), 300), r"int64 of shape .* expected uint8"),
        (np.ones((2, 4, 4, 3), bool), r"bool of shape .*; store x \* 255 of \[0, 1\]"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"expected uint8 of \[N, H, W, C\].*x\.transpose\(0, 2, 3, 1\) of \[N, C,"),
        (np.zeros((2, 1, 4, 5), np.uint8), r"x\.transpose\(0, 2, 3, 1\) of \[N, C,"),
        (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\); expected uint8 of \[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"shape \(0, 4, 4, 3\); expected"),
        (np.array([{}], object), "an object array; expected one plain array"),
        (lying("(1000000000000, 64, 64, 3)"), "1000000000000, 64, 64, 3], 12288000000000000 bytes; the file holds 100"),
        (lying("(-1, -100)"), r"\[-1, -100\], 100 bytes; the file holds 100"),
        (lying("(99,)"), "99 bytes; the file holds 100"),
        (member("(" * 5000), "cannot be read .*write the file again"),
        (b"hello", r"cannot be read \(EOF"),
    ],
)
def test_refuses_arrays(tmp_path, content, message):
    """In one line, before memory is taken for what the file does not hold."""
    path, readers = tmp_path / "a.npz", [load_images]
    if isinstance(content, np.ndarray):
        np.savez(path, content)
    else:
        readers += [lambda path: npz.read(path, "arr_0"), lambda path: list(npz.rows(path, "arr_0", 7))]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", content)
    for reader in readers:
        with pytest.raises(ValueError, match=message) as said:
            reader(path)
        assert "\n" not in str(said.value) and len(str(said.value)) < 500


def test_refuses_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_images(tmp_path / "none.npz")
    np.savez(tmp_path / "keys.npz", x=IMAGES, y=IMAGES)
    for load in (load_images, load_reference):
        with pytest.raises(ValueError, match=r"found keys x, y; expected arr_0( \(images\), mu and sigma)?"):
            load(tmp_path / "keys.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("arr_0", "which is no array")
    with pytest.raises(ValueError, match="found keys none; expected arr_0"):
        load_images(tmp_path / "other.npz")
    np.savez(tmp_path / "whole.npz", IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    encrypted = bytearray(whole)
    encrypted[whole.rfind(b"PK\1\2") + 8] = 1
    for content in (b"", b"hello", whole[:200]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(ValueError, match="not an npz file, or a truncated one"):
            load_images(tmp_path / "cut.npz")
    for content in (whole[:180] + b"\x00\xff" + whole[182:], bytes(encrypted)):
        (tmp_path / "hurt.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"hurt\.npz: cannot be read.*write the file again"):
            evaluate(load_images(tmp_path / "hurt.npz"), IMAGES, ["mse"])


def test_refuses_folders(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        load_images(tmp_path)
    folder(tmp_path / "x", ["a", "b", "c"], np.zeros((3, 4, 5, 3), np.uint8))
    (tmp_path / "x" / "b.png").write_bytes(b"hello")  # which is not even looked at
    Image.fromarray(IMAGES[0, :3]).save(tmp_path / "x" / "c.png")
    with pytest.raises(ValueError, match=r"b\.png: cannot be read"):
        load_images(tmp_path / "x")
    (tmp_path / "x" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"c\.png: shape \(3, 5, 3\), but a\.png has \(4, 5, 3\)"):
        load_images(tmp_path / "x")
    for part in ("target", "valid", "TestA", "SOURCE"):
        folder(tmp_path / part / part, ["a", "b"])
        with pytest.raises(ValueError, match=f"holds {part}, the parts of a data set; give one folder of images"):
            load_images(tmp_path / part)
    (tmp_path / "x" / "sampling.json").touch()
    with pytest.raises(ValueError, match="holds samples as npz"):
        load_images(tmp_path / "x")


def odd_files(place):
    """Targets as people have them, and what a viewer shows of each, in the order of the data set; sources beside."""
    random = np.random.default_rng(0)
    found = {name: random.integers(0, 256, (32, 36, 3), dtype=np.uint8) for name in ("img", "img (1)", "img-2")}
    found |= {name: random.integers(0, 256, (32, 36, 3), dtype=np.uint8) for name in ("sub/img", "sub-3", "z")}
    (place / "target" / "sub").mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn clockwise shows it upright
    Image.fromarray(np.rot90(found["img"])).save(place / "target" / "img.png", exif=exif)
    image = Image.fromarray(found["img (1)"])
    hidden = np.arange(36) > 20
    image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)[None].repeat(32, 0)))
    image.save(place / "target" / "img (1).png")
    found["img (1)"][:, hidden] = 128
    Image.fromarray(found["img-2"]).save(place / "target" / "img-2.webp", lossless=True)
    deep = found["sub/img"].astype(np.uint16) * 257
    tifffile.imwrite(place / "target" / "sub" / "img.tif", deep[::-1], extratags=[(274, "H", 1, 4, True)])
    Image.fromarray(found["sub-3"]).save(place / "target" / "sub-3.bmp")
    Image.fromarray(found["z"]).save(place / "target" / "z.jpg", quality=100, subsampling=0)
    for name in found:
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (36, 32), 99).save(place / "source" / f"{name}.png")
    (place / "target" / "phone.heic").touch()
    return {name: found[name] for name in ("img", "img (1)", "img-2", "sub", "sub-3", "z", "sub/img") if name in found}


def test_an_odd_folder_is_what_the_data_set_makes_of_it(tmp_path, capsys):
    """Also against its own npz, both ways round, and as the numbered files of a sampling: identical in every metric."""
    shown = odd_files(tmp_path / "data" / "test")
    target, ref = tmp_path / "data" / "test" / "target", tmp_path / "ref.npz"
    flags = ["--dataset", "x", "--data_dir", str(tmp_path / "data"), "--statistics", "raw", str(ref)]
    assert make_reference.main(flags) == 0
    files, kept = load_images(target), load_images(ref)
    assert files.notice == "left out 1 files of kinds that are not read (1 .heic)"
    np.testing.assert_array_equal(pixels(files), pixels(kept))
    assert files.order == kept.order
    for name, image in zip(files.names, pixels(files), strict=True):
        np.testing.assert_allclose(image.astype(int), shown[name], atol=5 if name == "z" else 0)
    numbered = folder(tmp_path / "png", [file_name(n, name) for n, name in enumerate(files.names)], pixels(kept))
    said = "psnr: 6 identical pair(s), of infinite value; so is the mean"
    for one, other in itertools.permutations((files, kept, numbered), 2):
        found = evaluate(one, other, ["mse", "mae", "psnr", "ssim"])
        assert [found["metrics"][name]["mean"] for name in found["metrics"]] == [0, 0, np.inf, 1]
        assert found["notes"][:2] == ["1 pair(s) are measured inside their masks alone", said]
        assert not any("order" in note for note in found["notes"])
    for _ in range(2):  # the report in a folder of samples is none of them
        assert main([str(ref), str(target), "--metric", "psnr"]) == 0
        assert "  inf  " in capsys.readouterr().out
        report = json.loads((target / "metrics.json").read_text())
        assert report["metrics"]["psnr"]["mean"] is None and report["n"] == 6
        assert report["notes"] == [
            "1 pair(s) are measured inside their masks alone",
            "psnr: 6 identical pair(s), of infinite value; so is the mean",
            f"{target}: {files.notice}",
        ]


@pytest.mark.parametrize(("top", "bits", "level"), [(1, 8, 1), (255, 8, 0), (4000, 16, 4095), (40000, 16, 0)])
def test_values_of_few_bits_are_said(tmp_path, top, bits, level):
    image = np.zeros((4, 5), f"uint{bits}")
    tifffile.imwrite(tmp_path / "a.tif", image)
    image[0, 0] = top
    tifffile.imwrite(tmp_path / "b.tif", image)
    notice = load_images(tmp_path).notice
    assert (f"no value above {top} of {2**bits - 1} (2 looked at): if {level} is white" in notice) == (level > 0)


ORDERS = {  # REF and SAMPLE: names of F, a folder, N, npz with names, D, with their digest, U, with neither
    "F:a,b F:a,b": "", "F:a,b N:a,b": "", "N:a,b F:a,b": "", "F:a,b N:b,a": "", "N:b,a F:a,b": "", "F:a,b D:a,b": "",
    "D:a,b N:a,b": "", "N:a,b N:a,b": "", "F:a,b F:000000_a,000001_b": "", "F:000000_a,000001_b N:a,b": "",
    "F:a,b F:fake_a,fake_b": "paired by what their names differ in: a with fake_a$",
    "N:b,a F:a_B,b_B": "paired by what their names differ in: b with b_B$",
    "F:a,b N:x/b,x/a": "paired by .*: a with x/a$",
    "F:x10,x11 F:x20,x21": r"order not known: .* of the pairs \(x10 and x20\)",
    "F:s-1.0,s-1.1 F:s-2.0,s-2.1": "order not",
    "F:c1_A,c2_A F:c1_B,c2_B": "paired by .*: c1_A with c1_B$", "N:a,a F:a,c": "order not known: .* in REF;",
    "U:a,b U:a,b": "order not known: no names nor order_digest in REF and SAMPLE; paired row by row",
    "F:a,b U:a,b": "order not known: no names nor order_digest in SAMPLE;",
    "F:a,\u00c4 F:a,A\u0308": "!1 names of the ref.*differs in its Unicode form alone",
    "F:\u00c4 N:A\u0308": "!.*Unicode",
    "U:a,b N:a,b": "order not known: .* in REF;", "D:b,a F:a,b": r"order not known: .* of the pairs \(a\)",
    "F:1a,2b F:a,b": r"order not known: .* of the pairs \(1a and a\)", "F:a,b N:1a,2b": "order not known",
    "F:a,b F:a,c": "!1 names of the reference are not in the sample, such as b; the sample has others, such as c",
    "N:a,b F:a,c": "!1 names of the ref", "N:a,b N:b,a": "!hold other pairs, or another order",
    "D:b,a D:a,b": "!or another order", "N:a,b N:c,d": "!hold other pairs", "F:a,b F:a": "!2 images in the ref",
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), ORDERS.items(), ids=ORDERS)
def test_pairs_belong_together(tmp_path, words, said):
    """By name where both sides have names; what is not known is said, what cannot be is refused, for pairs alone."""
    sides = []
    for n, (kind, listed) in enumerate(word.split(":") for word in words.split()):
        names = listed.split(",")
        images = np.stack([np.full((8, 8, 3), 40 * ("b" in name.replace("_B", "")), np.uint8) for name in names])
        keys = {"N": {"names": np.array(names)}, "D": {"order_digest": np.array(order_digest(names))}}.get(kind, {})
        place = tmp_path / str(n)
        sides.append(folder(place, names, images) if kind == "F" else packed(place.with_suffix(".npz"), images, **keys))
    if said[:1] == "!":
        with pytest.raises(ValueError, match=f"mse: .*{said[1:]}"):
            evaluate(*sides, ["mse"])
        return
    found = evaluate(*sides, ["mse"], batch_size=1)
    one, other, note = as_pairs(*sides)
    assert found["notes"] == ([note] if said else []) and re.match(said or "$", note)
    assert (
        (found["metrics"]["mse"]["mean"] == 0) == np.array_equal(pixels(one), pixels(other)) == (words != "D:b,a F:a,b")
    )
    assert not any("order" in note for note in evaluate(*sides, ["fd_raw"])["notes"])


def test_files_of_other_levels(tmp_path, capsys):
    """CT in int16 and PET in float, clipped at black and white, in 256 steps; and what levels mean nothing to."""
    rng = np.random.default_rng(0)
    for kind, black, white in (("int16", -1000, 2000), ("float32", 1, 7)):
        sides = {}
        for side in ("ref", "sample"):
            values = rng.uniform(black - 1, white + 1, (3, 16, 16)).astype(kind)
            sides[side] = np.rint((np.clip(values, black, white) - black) / (white - black) * 255) / 255
            for n, image in enumerate(values):
                (tmp_path / kind / side).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(tmp_path / kind / side / f"{n}.tif", image)
        words = [str(tmp_path / kind / side) for side in ("ref", "sample")]
        flags = ["--metric", "mse", "--device", "cpu", "--white", str(white), f"--black={black}"]
        assert main([*words, *flags]) == 0
        report = json.loads((tmp_path / kind / "sample" / "metrics.json").read_text())
        expected = ((sides["ref"] - sides["sample"]) ** 2).mean((1, 2))
        assert report["metrics"]["mse"]["per_image"] == pytest.approx(expected, abs=1e-4)
        assert report["levels"] == [black, white]
        with pytest.raises(ValueError, match=r"pixels (lie in|are int16).*the evaluator: --white"):
            main([*words, "--metric", "mse", "--device", "cpu"])
    np.savez(tmp_path / "a.npz", np.zeros((2, 8, 8, 1), np.uint8))
    for given, said in (
        ([str(tmp_path / "a.npz")] * 2, "--white and --black are of the files of folders: an npz has 0 to 255"),
        (words, "--white 1 must be above --black 2"),
    ):
        with pytest.raises(ValueError, match=said):
            main([*given, "--metric", "mse", "--white", "1", "--black", "2" if given == words else "0"])
    with pytest.raises(ValueError, match=r"samples_a.npz holds samples, reference_a.npz their refer"):
        main(["samples_a.npz", "reference_a.npz"])
    with pytest.raises(ValueError, match="--white nan, --black 0: expected finite numbers"):
        main([*words, "--metric", "mse", "--white", "nan"])
    assert capsys.readouterr().err == ""
