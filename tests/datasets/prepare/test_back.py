"""The way back: slices to volumes, by the position of every voxel in mm; patches to pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from datasets.prepare.__main__ import main
from tests.datasets.prepare import scans

itk = pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
FACTOR = 2 * 70_000 / 3.5e8


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_back_to_the_geometry_of_the_source(ct_pet, tmp_path, prepare, capsys, ending):
    manifest, out, _ = prepare("ct_pet", "--image_size", 0)
    name = manifest["splits"]["test"][0]
    flags = ["--source", out / "test/target", "--like", out, "--out", tmp_path / "volumes", "--ending", ending]
    assert main(["back", *map(str, flags)]) == 0
    path = tmp_path / f"volumes/{name.replace('/', '_')}{ending}"
    assert capsys.readouterr().out == f"{path}\n"
    image = itk.ReadImage(str(path))
    assert image.GetSize() == scans.CT["size"] and image.GetDirection() == pytest.approx(np.eye(3).ravel())
    assert image.GetSpacing() == pytest.approx(scans.CT["spacing"]) and image.GetOrigin() == pytest.approx(
        scans.CT["origin"]
    )
    where, first = scans.points_of(**scans.CT), np.array(scans.PET["origin"])
    top = first + (np.array(scans.PET["size"]) - 1) * scans.PET["spacing"]
    inside = ((where >= first) & (where <= top)).all(-1)
    expected = scans.linear(scans.ACTIVITY, where) * FACTOR
    assert np.abs(itk.GetArrayFromImage(image) - expected)[inside].max() < 0.05 * FACTOR and inside.sum() > 100
    if ending == ".nii.gz":  # by another library: millimetres of RAS
        affine = nibabel.load(path).affine
        assert np.allclose(affine[:3, :3], np.diag([-1.5, -2, 2.5])) and np.allclose(affine[:3, 3], [8, 9, 20])


def test_back_from_a_sampling(ct_pet, tmp_path, prepare):
    """Its 256 levels, between the black and white of its training, in the voxels of the prepared grid."""
    from scripts import sample
    from tests.scripts.sampling_runs import arrays, make_run

    manifest, out, _ = prepare("ct_pet", "--image_size", 16)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    window = {"source_black": -1000, "source_white": 1000, "target_black": 1, "target_white": 7}
    own = {"dataset": "x", "data_dir": str(out), "image_size": "16"} | window
    run = make_run(tmp_path / "run", data=own, channels=(1, 1), stored=("int16", "float32", "tiff"))
    where = tmp_path / "sampled"
    assert sample.main([str(run), "--out_dir", str(where), "--nfe", "3", "--device", "cpu"]) == 0
    flags = ["--source", where, "--like", out, "--out", tmp_path / "volumes", "--grid", "prepared"]
    assert main(["back", *map(str, flags)]) == 0
    image = itk.ReadImage(str(tmp_path / f"volumes/{entry['name']}.nii.gz"))
    assert image.GetSpacing() == pytest.approx(entry["grid"]["spacing"])
    found, samples = itk.GetArrayFromImage(image), arrays(where, "samples")
    names = [f"{entry['name']}_z{z:04d}" for z in entry["slices"]]
    levels = samples["arr_0"][[samples["names"].tolist().index(name) for name in names], ..., 0]
    assert np.ptp(levels) > 100
    assert found[entry["slices"]] == pytest.approx(1 + 6 * (levels / 255), abs=1e-5)
    (where / "samples").mkdir()
    with pytest.raises(
        ValueError, match=r"--source .*samples: expected the folder .*: give .*sampled, that of the sampl"
    ):
        main(["back", "--source", str(where / "samples"), "--like", str(out), "--out", str(tmp_path / "v")])
    record = json.loads((where / "sampling.json").read_text())
    del record["levels"]
    (where / "sampling.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"sampling.json: of an older version, which kept no levels; sample again"):
        main(["back", *map(str, flags)])


@pytest.mark.parametrize(
    ("fit", "size", "voxel", "first"),
    [("crop", 6, (1, 1.5), (6, 6.5)), ("resize", 16, (0.5, 0.75), (4.75, 4.625)), ("stretch", 16, (0.625, 0.75), None)],
)  # of 10 x 8 voxels of 1 x 1.5 mm from 4, 5 mm on
def test_back_from_a_sampling_of_a_part(mr_ct, tmp_path, prepare, fit, size, voxel, first):
    """What a training that cut its pairs has not shown is air; what it has is where it was."""
    for mask in mr_ct.rglob("mask*"):
        mask.unlink()
    manifest, out, _ = prepare("mr_ct", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    corner = first or (4 - 0.5 + 0.3125, 5 - 0.75 + 0.375)
    grid = dict(size=(size, size, 5), spacing=(*voxel, 3.0), origin=(*corner, -6.0))
    values = scans.linear(scans.HU, scans.points_of(**grid))
    levels = np.rint((values + 400) / 800 * 255).astype(np.uint8)[..., None]
    names = np.array([f"{entry['name']}_z{z:04d}" for z in range(5)])
    np.savez(tmp_path / "samples.npz", arr_0=levels, names=names)
    record = {"samples": "samples.npz", "levels": {"kind": "float32", "black": -400, "white": 400, "fit": fit}}
    (tmp_path / "sampling.json").write_text(json.dumps(record))
    assert main(["back", "--source", str(tmp_path), "--like", str(out), "--out", str(tmp_path / "v")]) == 0
    found = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / f"v/{entry['name']}.nii.gz")))
    where = scans.points_of(**scans.ANATOMY)
    inside = np.ones(found.shape, bool)
    inside[:, :, [0, -1]] = fit == "stretch"  # both cuts leave out a column at either side, crop one row or two more
    if fit == "crop":
        inside[:, [0, -1]], inside[:, :, [1, -2]] = False, False
    assert np.abs(found - scans.linear(scans.HU, where))[inside][:].max() < 12 and (found[~inside] == -1000).all()


@pytest.mark.parametrize("hidden", [False, True])
def test_nothing_is_mixed_into_the_border_of_what_is_known(tmp_path, prepare, hidden):
    """A CT under a wider PET of coarser voxels, and a mask in the middle: values are those of the field, or 0."""
    narrow = dict(size=(24, 24, 6), spacing=(1.0, 1.0, 2.0), origin=(-11.5, -11.5, 0.0))
    wide = dict(size=(20, 20, 6), spacing=(2.0, 2.0, 2.0), origin=(-19.0, -19.0, 0.0))
    field = (5.0, 0.02, -0.03, 0.01)
    for n in range(3):
        for name, grid, values in (("CT", narrow, scans.HU), ("SUV", wide, field)):
            affine = np.diag([*grid["spacing"], 1.0])
            affine[:3, 3] = grid["origin"]
            array = scans.linear(values, scans.points_of(**grid)).astype(np.float32)
            scans.nifti(tmp_path / f"raw/P{n}/day/{name}.nii.gz", array, affine)
    manifest, out, _ = prepare("ct_pet", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    slices = out / "test/target"
    alpha = scans.stack(slices, entry)[..., 1]
    assert 0 < (alpha == 0).sum() < alpha.size / 1.5
    if hidden:
        for path in slices.iterdir():
            pixels = tifffile.imread(path)
            pixels[8:12, 8:12] = 0
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    assert main(["back", "--source", str(slices), "--like", str(out), "--out", str(tmp_path / "v")]) == 0
    found = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / f"v/{entry['name']}.nii.gz")))
    expected = scans.linear(field, scans.points_of(**narrow))
    air = found == 0
    assert np.abs(found - expected)[~air].max() < 0.04 and air.any() == hidden  # at the border the nearest known ones
    assert not hidden or (air[:, 9:15, 9:15].all() and air.sum() <= 6 * 8 * 8)


def test_back_takes_files_of_its_suffix_and_overwrites_none(ct_pet, tmp_path, prepare):
    _, out, _ = prepare("ct_pet", "--image_size", 0)

    def back(source, *flags):
        words = ["--source", source, "--like", out, "--out", tmp_path / "volumes", *flags]
        return main(["back", *map(str, words)])

    with pytest.raises(ValueError, match=r"holds nothing of .*, whose files have names such as \w+_z\d+_maen"):
        back(out / "test/target", "--suffix", "_maen")
    assert back(out / "test/target") == 0
    with pytest.raises(ValueError, match=r"nii.gz is there already: choose another --out, or give --overwrite true"):
        back(out / "test/target")
    assert back(out / "test/target", "--overwrite", "true") == 0
    with pytest.raises(
        ValueError, match=r"--source .*none: expected the folder of translated files, or of a sampling$"
    ):
        back(tmp_path / "none")


def test_back_from_slices_of_another_size(ct_pet, tmp_path, prepare):
    """A model that took them at half the size: the box stays, voxels are twice as large."""
    manifest, out, _ = prepare("ct_pet", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    (tmp_path / "half").mkdir()
    for z in entry["slices"]:
        whole = tifffile.imread(out / f"test/target/{entry['name']}_z{z:04d}.tif")
        tifffile.imwrite(tmp_path / f"half/{entry['name']}_z{z:04d}_mean.tif", whole.reshape(4, 2, 4, 2).mean((1, 3)))
    base = ["back", "--source", tmp_path / "half", "--like", out, "--out", tmp_path / "volumes", "--suffix", "_mean"]
    assert main([*map(str, base), "--grid", "prepared"]) == 0
    image = itk.ReadImage(str(tmp_path / f"volumes/{entry['name']}.nii.gz"))
    assert image.GetSize() == (4, 4, 6) and image.GetSpacing() == pytest.approx((5, 5, 3))
    assert image.GetOrigin() == pytest.approx((-5.75, -6.25, 22))
    values = scans.linear(scans.ACTIVITY, scans.points_of((4, 4, 6), (5, 5, 3), (-5.75, -6.25, 22))) * FACTOR
    assert np.abs(itk.GetArrayFromImage(image) - values).max() < 0.05 * FACTOR


def test_back_of_an_oblique_volume(tmp_path, prepare):
    """Sagittal slices, turned: prepared as axial ones, and back as they were."""
    turn = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0.0]])
    size, spacing, origin = (8, 7, 6), (1.0, 1.5, 2.0), (3.0, -5.0, 9.0)
    where = scans.points_of(size, spacing, origin, turn)
    for n in range(3):
        for name, field in (("mr", (99.0, *scans.MR[1:])), ("ct", scans.HU)):
            scans.metaimage(tmp_path / f"raw/{n}/{name}.mha", scans.linear(field, where), spacing, origin, turn)
    manifest, out, _ = prepare("mr_ct", "--image_size", 0, "--percentile", 100)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    assert entry["grid"]["direction"] == pytest.approx(np.eye(3).ravel()) and entry["grid"]["size"] == [6, 8, 7]
    assert np.abs(scans.stack(out / "test/target", entry) - scans.linear(scans.HU, scans.points(entry))).max() <= 0.51
    assert main(["back", "--source", str(out / "test/target"), "--like", str(out), "--out", str(tmp_path / "v")]) == 0
    image = itk.ReadImage(str(tmp_path / f"v/{entry['name']}.nii.gz"))
    assert image.GetSize() == size and image.GetDirection() == pytest.approx(turn.ravel(), abs=1e-6)
    assert image.GetSpacing() == pytest.approx(spacing) and image.GetOrigin() == pytest.approx(origin)
    assert image.GetPixelID() == itk.sitkInt16
    assert np.abs(itk.GetArrayFromImage(image) - scans.linear(scans.HU, where)).max() <= 0.51


def test_mistakes_of_the_way_back(mr_ct, tmp_path, prepare):
    manifest, out, _ = prepare("mr_ct", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["test"][0]]

    def back(source="out/test/target", like="out"):
        main(["back", "--source", str(tmp_path / source), "--like", str(tmp_path / like), "--out", str(tmp_path / "v")])

    with pytest.raises(ValueError, match=r"holds nothing of .*out, whose files have names such as \w+_z0001"):
        (tmp_path / "none").mkdir()
        back("none")
    with pytest.raises(ValueError, match=r"raw: no folder with manifest.json"):
        back(like="raw")
    (out / f"test/target/{entry['name']}_z0002.tif").unlink()
    with pytest.raises(ValueError, match=rf"{entry['name']}_z0002 is missing .1 such files.; translate all"):
        back()
    with pytest.raises(ValueError, match="--source, --like and --out are needed"):
        main(["back", "--source", "x"])
    assert json.loads((out / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_full_disk_leaves_no_volume(mr_ct, tmp_path, prepare, ending, monkeypatch):
    """SimpleITK writes what has room of NIfTI and says nothing, and of other formats the name of no file."""
    _, out, _ = prepare("mr_ct", "--image_size", 0)
    own = itk.WriteImage

    def short(image, name):
        own(image, name)
        if ending in (".mha", ".nrrd"):
            raise RuntimeError("Exception thrown in SimpleITK")
        content = Path(name).read_bytes()
        Path(name).write_bytes(content[: len(content) // 2])

    monkeypatch.setattr(itk, "WriteImage", short)
    flags = ["--source", out / "test/target", "--like", out, "--out", tmp_path / "v", "--ending", ending]
    with pytest.raises(ValueError, match=rf"v/\S+{ending}: cannot be written whole; make room on the disk, or choose"):
        main(["back", *map(str, flags)])
    assert not list((tmp_path / "v").iterdir())


def test_slices_of_another_preparation(mr_ct, tmp_path, prepare):
    """Of the same studies, but thicker; and of a translation of the whole folder."""
    from datasets.prepare.back import translated

    manifest, out, _ = prepare("mr_ct", "--image_size", 0)
    thick, other, _ = prepare("mr_ct", "--image_size", 0, "--spacing", "1,1.5,5", out="other")
    entry = manifest["about"][manifest["splits"]["test"][0]]
    assert len(thick["about"][manifest["splits"]["test"][0]]["slices"]) < len(entry["slices"])
    flags = ["--out", str(tmp_path / "v")]
    with pytest.raises(ValueError, match=rf"other has no slice {entry['name']}_z0003; give as --like what was transl"):
        main(["back", "--source", str(out / "test/target"), "--like", str(other), *flags])
    assert len(translated(out / "test/target", "")) == len(entry["slices"])
    with pytest.raises(ValueError, match=r"holds nothing of .*; give a folder of its own, such as .*test/source$"):
        main(["back", "--source", str(out), "--like", str(out), *flags])
    assert not (tmp_path / "v").exists()


def test_patches_back_to_pictures(tmp_path, prepare):
    from tests.datasets.prepare import raws

    raws.fives(tmp_path, size=20).rename(tmp_path / "raw")
    _, out, _ = prepare("fives", "--image_size", 8)
    assert main(["back", "--source", str(out / "test/source"), "--like", str(out), "--out", str(tmp_path / "p")]) == 0
    from PIL import Image

    for path in sorted((tmp_path / "raw/test/Original").iterdir()):
        with Image.open(path) as a, Image.open(tmp_path / "p" / path.name) as b:
            assert (np.asarray(a) == np.asarray(b)).all()
    hidden = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(hidden).save(out / "test/source/1_A_y00000_x00000.png")
    for path in (out / "test/source").glob("1_A*.png"):
        Image.open(path).convert("RGBA").save(path)
    assert main(["back", "--source", str(out / "test/source"), "--like", str(out), "--out", str(tmp_path / "a")]) == 0
    with Image.open(tmp_path / "a/1_A.png") as stored:
        alpha = np.asarray(stored)[..., 3]
    assert not alpha[:8, :8].any() and (alpha == 255).sum() == 20 * 20 - 64
    (out / "test/source/1_A_y00000_x00000.png").unlink()
    with pytest.raises(ValueError, match="of 1_A no patch covers row 0, column 0"):
        main(["back", "--source", str(out / "test/source"), "--like", str(out), "--out", str(tmp_path / "p")])


def test_patches_of_pictures_of_one_name(tmp_path, prepare):
    """In two parts, of other sizes."""
    from PIL import Image

    for part, size in (("train", (20, 20)), ("val", (24, 12)), ("test", (16, 8))):
        for side in ("HE", "IHC"):
            (tmp_path / "raw" / side / part).mkdir(parents=True)
            pixels = np.random.default_rng(size).integers(30, 200, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "raw" / side / part / "1.png")
    _, out, _ = prepare("bci", "--image_size", 8)
    half = tmp_path / "half"
    half.mkdir()
    for path in (out / "val/source").iterdir():
        Image.open(path).resize((4, 4)).save(half / path.name)
    with pytest.raises(
        ValueError, match=r"half: patches of 4x4 pixels, but 8x8 were prepared; translate or sample by a"
    ):
        main(["back", "--source", str(half), "--like", str(out), "--out", str(tmp_path / "v")])
    for part in ("train", "val", "test"):
        flags = ["--source", str(out / part / "source"), "--like", str(out), "--out", str(tmp_path / part)]
        assert main(["back", *flags]) == 0
        with Image.open(tmp_path / part / "1.png") as a, Image.open(tmp_path / "raw/HE" / part / "1.png") as b:
            assert (np.asarray(a) == np.asarray(b)).all()
