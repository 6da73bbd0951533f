"""Volumes → slices → volumes: every voxel by its position in mm."""

import json
import shutil

import numpy as np
import pytest
import tifffile

from datasets.prepare.__main__ import main
from datasets.prepare.grids import Grid
from tests.datasets.prepare import scans

itk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
FACTOR = 2 * 70_000 / 3.5e8


@pytest.fixture
def ct_pet(tmp_path):
    return scans.ct_pet(tmp_path).rename(tmp_path / "raw")


@pytest.fixture
def mr_ct(tmp_path):
    return scans.mr_ct(tmp_path).rename(tmp_path / "raw")


def points(entry):
    grid = entry["grid"]
    return scans.points_of(grid["size"], grid["spacing"], grid["origin"], grid["direction"])


def stack(folder, entry):
    return np.stack([tifffile.imread(folder / f"{entry['name']}_z{z:04d}.tif") for z in entry["slices"]])


def test_slices_of_dicom(ct_pet, prepare):
    scans.series(ct_pet / "PETCT_0/study/overview", "CT", np.zeros((2, 2, 2)), (1, 1, 1), (0, 0, 0))
    manifest, out, said = prepare("ct_pet", "--image_size", 0)
    assert manifest["pairs"] == {"train": 12, "val": 6, "test": 6}
    assert {name for names in manifest["splits"].values() for name in names} == {f"PETCT_{n}/study" for n in range(4)}
    assert "ct_pet i2sb --source_black -1000.0 --source_white 1000.0 --target_white 10.0" in said
    name = manifest["splits"]["train"][0]
    entry = manifest["about"][name]
    assert entry["grid"] | {"direction": 0} == {k: list(v) for k, v in scans.PET.items()} | {"direction": 0}
    assert entry["suv_factor"] == pytest.approx(FACTOR)
    where = points(entry)[entry["slices"]]
    ct, pet = stack(out / "train/source", entry), stack(out / "train/target", entry)
    assert ct.dtype == np.int16 and pet.dtype == np.float32
    assert np.abs(ct - scans.linear(scans.HU, where)).max() <= 1.01
    assert np.abs(pet - scans.linear(scans.ACTIVITY, where) * FACTOR).max() < 0.05 * FACTOR


def test_another_grid(ct_pet, prepare):
    """Smaller voxels, and a square about the middle that is larger than both: outside is air, and no activity."""
    manifest, out, said = prepare("ct_pet", "--spacing", "2,2,4", "--image_size", 20, "--neighbours", 1)
    assert "--image_size 20" in said
    entry = manifest["about"][manifest["splits"]["val"][0]]
    assert entry["grid"]["size"] == [20, 20, 4] and entry["grid"]["spacing"] == [2, 2, 4]
    where = points(entry)
    ct, pet = stack(out / "val/source", entry), stack(out / "val/target", entry)
    assert ct.shape[1:] == (20, 20, 3) and pet.shape[1:] == (20, 20)
    expected = scans.linear(scans.HU, where)
    first, top = (
        np.array(scans.CT["origin"]),
        np.array(scans.CT["origin"]) + (np.array(scans.CT["size"]) - 1) * scans.CT["spacing"],
    )
    inside = ((where >= first) & (where <= top)).all(-1)
    outside = ((where < first - 2.5) | (where > top + 2.5)).any(-1)
    for n, z in enumerate(entry["slices"]):
        for k, beside in enumerate((max(z - 1, 0), z, min(z + 1, 3))):
            assert np.abs(ct[n, ..., k] - expected[beside])[inside[beside]].max() <= 1.01
            assert (ct[n, ..., k][outside[beside]] == -1000).all()
    assert pet[0, 0, 0] == 0 and pet.max() > 1


def test_stored_activity(ct_pet, prepare):
    manifest, out, _ = prepare("ct_pet", "--image_size", 0, "--pet", "stored")
    entry = manifest["about"][manifest["splits"]["train"][0]]
    expected = scans.linear(scans.ACTIVITY, points(entry)[entry["slices"]])
    assert np.abs(stack(out / "train/target", entry) - expected).max() < 0.05


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


def test_volumes_that_do_not_meet_are_refused(ct_pet, prepare):
    for path in sorted((ct_pet / "PETCT_1").rglob("CT/*")):
        ds = pydicom.dcmread(path)
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 1000]
        ds.save_as(path)
    with pytest.raises(ValueError, match=r"PETCT_1.* share no slice in which both show something: they lie apart"):
        prepare("ct_pet", "--image_size", 0)


def test_two_series_in_one_folder_are_said(ct_pet, prepare):
    for path in (ct_pet / "PETCT_1/study/PET").iterdir():
        path.rename(ct_pet / "PETCT_1/study/CT" / f"pet{path.name}")
    with pytest.raises(ValueError, match=r"PETCT_1/study/CT: holds slices of 2 series; give each a folder of its own"):
        prepare("ct_pet")


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


def test_mr_and_ct_with_a_mask(mr_ct, prepare):
    manifest, out, said = prepare("mr_ct", "--image_size", 0, "--neighbours", 1, "--percentile", 100)
    assert "mr_ct i2sb --source_white 1.0 --target_black -1000.0 --target_white 2000.0" in said and "--group H" in said
    for part, names in manifest["splits"].items():
        for entry in (manifest["about"][name] for name in names):
            where = points(entry)
            assert entry["slices"] == [1, 2, 3, 4] and entry["grid"]["size"] == [
                10,
                8,
                5,
            ]  # the mask is empty in the first
            level = scans.linear(scans.MR, where)[1:, 1:].max()
            assert entry["white"] == pytest.approx(level)
            mr, ct = stack(out / part / "source", entry), stack(out / part / "target", entry)
            assert mr.shape == (4, 8, 10, 4) and ct.shape == (4, 8, 10, 2)
            expected = scans.linear(scans.MR, where).clip(0) / level
            assert expected.min() == 0 and np.abs(mr[..., 1] - expected[1:]).max() < 1e-5
            assert np.abs(mr[0, ..., 0] - expected[0]).max() < 1e-5
            assert np.abs(ct[..., 0] - scans.linear(scans.HU, where)[1:]).max() <= 0.51
            assert (ct[..., 1] == np.array([0] + [1] * 7)[:, None]).all()
    assert main(["back", "--source", str(out / "test/target"), "--like", str(out), "--out", str(out / "v")]) == 0
    (path,) = (out / "v").iterdir()
    volume = itk.GetArrayFromImage(itk.ReadImage(str(path)))
    assert (volume[0] == -1000).all()  # what was not prepared is air
    assert (volume[:, 0] == -1000).all()  # nor what the mask hides, which a model leaves grey
    assert np.abs(volume[1:, 1:] - scans.linear(scans.HU, points(entry))[1:, 1:]).max() <= 0.51


def test_a_square_larger_than_mr_and_ct(mr_ct, prepare):
    """Outside is no signal, and air."""
    for mask in mr_ct.rglob("mask*"):
        mask.unlink()
    manifest, out, _ = prepare("mr_ct", "--image_size", 20)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    mr, ct = stack(out / "test/source", entry), stack(out / "test/target", entry)
    assert ct.shape[1:] == mr.shape[1:] == (20, 20)
    assert (ct[:, :5] == -1000).all() and (mr[:, :5] == 0).all() and ct[:, 8:12].max() > -1000


@pytest.mark.parametrize("changed", ["size", "spacing", "origin", "direction"])
def test_grids_that_differ_in_one_thing_are_not_alike(changed):
    own = {"size": (4, 5, 6), "spacing": (1, 2, 3), "origin": (0, 1, 2), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
    other = own | {changed: own[changed][::-1] if changed != "direction" else (0, 1, 0, 1, 0, 0, 0, 0, 1)}
    assert Grid(**own).alike(Grid(**own)) and not Grid(**own).alike(Grid(**other))


def test_the_reader_takes_window_and_mask(mr_ct, prepare):
    from datasets import open_data

    manifest, out, _ = prepare("mr_ct", "--image_size", 0, "--ct_black", -100, "--ct_white", 100)
    data = open_data("mr_ct", "val", data_dir=str(out), source_white=1.0, target_black=-100, target_white=100)
    entry = manifest["about"][manifest["splits"]["val"][0]]
    item = data.get(0, None)
    expected = (scans.linear(scans.HU, points(entry)[1]) / 100).clip(-1, 1)
    assert np.abs(item.target[0].numpy() - expected)[1:].max() < 0.006 and not item.mask[0, 0].any()
    assert item.mask[0, 1:].all() and item.source.max() <= 1


def test_back_of_an_oblique_volume(tmp_path, prepare):
    """Sagittal slices, turned: prepared as axial ones, and back as they were."""
    turn = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0.0]])
    size, spacing, origin = (8, 7, 6), (1.0, 1.5, 2.0), (3.0, -5.0, 9.0)
    where = scans.points_of(size, spacing, origin, turn)
    for n in range(3):
        for name, field in (("mr", scans.MR), ("ct", scans.HU)):
            scans.metaimage(tmp_path / f"raw/{n}/{name}.mha", scans.linear(field, where), spacing, origin, turn)
    manifest, out, _ = prepare("mr_ct", "--image_size", 0, "--percentile", 100)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    assert entry["grid"]["direction"] == pytest.approx(np.eye(3).ravel()) and entry["grid"]["size"] == [6, 8, 7]
    assert np.abs(stack(out / "test/target", entry) - scans.linear(scans.HU, points(entry))).max() <= 0.51
    assert main(["back", "--source", str(out / "test/target"), "--like", str(out), "--out", str(tmp_path / "v")]) == 0
    image = itk.ReadImage(str(tmp_path / f"v/{entry['name']}.nii.gz"))
    assert image.GetSize() == size and image.GetDirection() == pytest.approx(turn.ravel(), abs=1e-6)
    assert image.GetSpacing() == pytest.approx(spacing) and image.GetOrigin() == pytest.approx(origin)
    assert image.GetPixelID() == itk.sitkInt16
    assert np.abs(itk.GetArrayFromImage(image) - scans.linear(scans.HU, where)).max() <= 0.51


def test_nifti_of_ct_and_suv(tmp_path, prepare):
    grid = dict(size=(6, 6, 4), spacing=(2.0, 2.0, 3.0), origin=(0.0, 0.0, 0.0))
    values = scans.linear(scans.HU, scans.points_of(**grid)).astype(np.float32)
    suv = (values + 100) / 20
    suv[0] = 0  # outside of the scan
    for n in range(3):
        folder, affine = tmp_path / f"raw/P{n}/day", np.diag([2.0, 2, 3, 1])
        for name, array in (("CT", values * 0), ("CTres", values), ("SUV", suv), ("PET", values)):
            scans.nifti(folder / f"{name}.nii.gz", array, affine)
    manifest, out, _ = prepare("ct_pet", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["train"][0]]
    assert entry["slices"] == [1, 2, 3] and entry["suv_factor"] == 1
    assert (stack(out / "train/source", entry) == np.rint(values[1:])).all()
    assert np.abs(stack(out / "train/target", entry) - suv[1:].clip(0)).max() < 1e-6 and suv.min() < -1
    assert set(manifest["sources"]) == {f"P{n}/day/{name}.nii.gz" for n in range(3) for name in ("CTres", "SUV")}


def test_two_studies_of_a_patient_stay_together(ct_pet, prepare):
    shutil.move(ct_pet / "PETCT_1/study", ct_pet / "PETCT_0/later")
    (ct_pet / "PETCT_1").rmdir()
    manifest, _, _ = prepare("ct_pet", "--image_size", 0)
    (part,) = [part for part, names in manifest["splits"].items() if "PETCT_0/later" in names]
    assert "PETCT_0/study" in manifest["splits"][part]
    torn, _, _ = prepare("ct_pet", "--image_size", 0, "--group_by", "study|later", "--test", 0, out="other")
    assert sorted(map(len, torn["splits"].values())) == [1, 3]


def test_mistakes(ct_pet, tmp_path, prepare):
    scans.series(ct_pet / "PETCT_0/study/thin", "CT", np.zeros((3, 2, 2)), (1, 1, 1), (0, 0, 0))
    with pytest.raises(ValueError, match=r"study/CT and thin are both CT of one study; remove one"):
        prepare("ct_pet")
    shutil.copytree(ct_pet, tmp_path / "chosen")
    manifest, _, _ = prepare("ct_pet", "--series", "CT", source="chosen", out="chosen_out")
    assert not any("thin" in name for name in manifest["sources"]) and len(manifest["sources"]) == 60
    shutil.rmtree(ct_pet / "PETCT_0/study/thin")
    shutil.rmtree(ct_pet / "PETCT_0/study/PET")
    with pytest.raises(ValueError, match="PETCT_0/study: holds CT but no PET of 3 slices or more; add it"):
        prepare("ct_pet")
    with pytest.raises(ValueError, match="--spacing has 2 numbers, expected 3"):
        prepare("ct_pet", "--spacing", "1,1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder holds both volumes of a pair"):
        prepare("mr_ct", source="empty")


def test_mistakes_of_mr_ct(mr_ct, prepare):
    with pytest.raises(ValueError, match="--percentile is 200, expected 100 at most"):
        prepare("mr_ct", "--percentile", 200)
    shutil.copy(mr_ct / "Task1/brain/1BA000/mr.nii.gz", mr_ct / "Task1/brain/1BA000/mr.nii")
    with pytest.raises(ValueError, match=r"mr.nii.gz: has the name of mr.nii; remove one"):
        prepare("mr_ct")
    (mr_ct / "Task1/brain/1BA000/mr.nii").unlink()
    (mr_ct / "Task1/brain/1BA000/mr.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1BA000: holds no mr.nii.gz or .mha beside ct.nii.gz; add it"):
        prepare("mr_ct")
    for name in ("mr", "mask", "ct"):
        (mr_ct / f"Task1/brain/1BA000/{name}.nii.gz").unlink(missing_ok=True)
    scans.metaimage(mr_ct / "Task1/brain/1BA001/mr.mha", np.zeros((5, 8, 10)), (1, 1.5, 3), (4, 5, -6))
    with pytest.raises(ValueError, match=r"mr.mha: holds no value above 0 in its mask; remove the patient"):
        prepare("mr_ct")


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


@pytest.mark.parametrize("inner", ["PETCT_0/study", "PETCT_0/study/CT"])
def test_one_study_is_no_folder_of_patients(ct_pet, prepare, inner):
    with pytest.raises(ValueError, match=r"is the folder of one study, expected one that holds a folder a patient"):
        prepare("ct_pet", source=f"raw/{inner}")


def test_one_patient_of_mr(mr_ct, prepare):
    with pytest.raises(ValueError, match=r"1BA000: is the folder of one study"):
        prepare("mr_ct", "--val", 0, "--test", 0, source="raw/Task1/brain/1BA000")
