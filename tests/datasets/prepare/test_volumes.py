"""Volumes → slices → volumes: every voxel by its position in mm."""

import shutil

import numpy as np
import pytest

from datasets.prepare.__main__ import main
from datasets.prepare.grids import Grid
from tests.datasets.prepare import scans

itk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
FACTOR = 2 * 70_000 / 3.5e8


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
    where = scans.points(entry)[entry["slices"]]
    ct, pet = scans.stack(out / "train/source", entry), scans.stack(out / "train/target", entry)
    assert ct.dtype == np.int16 and pet.dtype == np.float32
    assert np.abs(ct - scans.linear(scans.HU, where)).max() <= 1.01
    assert np.abs(pet - scans.linear(scans.ACTIVITY, where) * FACTOR).max() < 0.05 * FACTOR


def test_another_grid(ct_pet, prepare):
    """Smaller voxels, and a square about the middle that is larger than both: outside is air, and no activity."""
    manifest, out, said = prepare("ct_pet", "--spacing", "2,2,4", "--image_size", 20, "--neighbours", 1)
    assert "--image_size 32" in said  # the least that is proposed
    entry = manifest["about"][manifest["splits"]["val"][0]]
    assert entry["grid"]["size"] == [20, 20, 4] and entry["grid"]["spacing"] == [2, 2, 4]
    where = scans.points(entry)
    ct, pet = scans.stack(out / "val/source", entry), scans.stack(out / "val/target", entry)
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


def test_sources_alone_are_translated_and_come_back(ct_pet, prepare, tmp_path):
    """Patients without PET, on voxels as the training had them; by their own slices, volumes of their geometry."""
    from scripts import translate
    from tests.scripts.translate_runs import make_run

    for n in (1, 3):
        shutil.rmtree(ct_pet / f"PETCT_{n}/study/PET")
    flags = ["--spacing", "2,2,4", "--image_size", 16, "--neighbours", 1, "--targets", "false"]
    spare = pydicom.dcmread(next((ct_pet / "PETCT_0/study/PET").iterdir()))
    spare.NumberOfFrames = 6
    (ct_pet / "PETCT_1/study/PET").mkdir()
    spare.save_as(ct_pet / "PETCT_1/study/PET/all.dcm")  # nobody reads it
    manifest, out, said = prepare("ct_pet", *flags)
    assert manifest["pairs"] == {"test": 24} and not (out / "test/target").exists()
    assert f"python -m scripts.translate RUN {out}/test/source --out slices\n" in said
    entry = manifest["about"]["PETCT_1/study"]
    assert entry["grid"]["spacing"] == [2, 2, 4] and "suv_factor" not in entry
    ct = scans.stack(out / "test/source", entry)
    where = scans.points(entry)
    middle = (slice(1, -1), slice(3, -3), slice(3, -3))
    assert np.abs(ct[..., 1] - scans.linear(scans.HU, where))[middle].max() <= 1.01
    run = make_run(tmp_path / "run", channels=(1, 3), stored=("int16", "float32", "tiff"), data={
        "source_black": -1000.0, "source_white": 1000.0, "target_white": 10.0, "image_size": "16"})  # fmt: skip
    words = [run, out / "test/source", "--out", tmp_path / "slices", "--nfe", 2, "--device", "cpu"]
    assert translate.main(list(map(str, words))) == 0
    flags = ["--source", tmp_path / "slices", "--like", out, "--out", tmp_path / "volumes"]
    assert main(["back", *map(str, flags)]) == 0
    for n in range(4):
        image = itk.ReadImage(str(tmp_path / f"volumes/PETCT_{n}_study.nii.gz"))
        assert image.GetSize() == scans.CT["size"] and image.GetOrigin() == pytest.approx(scans.CT["origin"])
        assert np.ptp(itk.GetArrayFromImage(image)) > 0


def test_stored_activity(ct_pet, prepare):
    manifest, out, _ = prepare("ct_pet", "--image_size", 0, "--pet", "stored")
    entry = manifest["about"][manifest["splits"]["train"][0]]
    expected = scans.linear(scans.ACTIVITY, scans.points(entry)[entry["slices"]])
    assert np.abs(scans.stack(out / "train/target", entry) - expected).max() < 0.05


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


def test_studies_of_archives(ct_pet, prepare, tmp_path):
    """Slices named by their UID, a report that comes first, folders of parts; all slices in one file are refused."""
    for n, path in enumerate(sorted((ct_pet / "PETCT_1/study/CT").iterdir())):
        path.rename(path.with_name(f"1.2.826.0.1.3680043.{n}"))
    report = pydicom.dcmread(next((ct_pet / "PETCT_2/study/PET").iterdir()))
    for keep in range(4):
        part = ct_pet / ("train" if keep < 3 else "test")
        part.mkdir(exist_ok=True)
        (ct_pet / f"PETCT_{keep}").rename(part / f"PETCT_{keep}")
    manifest, _, _ = prepare("ct_pet", "--image_size", 0)
    assert sorted(map(len, manifest["splits"].values())) == [1, 1, 2]
    assert manifest["splits"]["test"] == ["test/PETCT_3/study"] and manifest["pairs"]["train"] == 12
    mip = ct_pet / "train/PETCT_2/study/MIP"
    mip.mkdir()
    report.NumberOfFrames = 36  # a picture that turns, beside a whole series
    report.save_as(mip / "1.dcm")
    assert prepare("ct_pet", "--image_size", 0, out="beside")[0]["pairs"]["train"] == 12
    shutil.rmtree(mip)
    del report.NumberOfFrames
    folder = ct_pet / "train/PETCT_2/study/PET"
    report.Modality = "SR"
    report.save_as(folder / "+report.dcm")
    with pytest.raises(ValueError, match=r"\+report.dcm.* lie at one place; remove one"):
        prepare("ct_pet", "--image_size", 0, out="other")
    shutil.rmtree(folder)
    folder.mkdir()
    report.Modality, report.NumberOfFrames = "PT", 40
    report.save_as(folder / "all")
    with pytest.raises(ValueError, match=r"PET/all: holds 40 frames, expected a file a slice; convert it"):
        prepare("ct_pet", "--image_size", 0, out="third")


def test_pairs_are_masked_beyond_the_source(tmp_path, prepare):
    """A narrow MR under a whole CT; where both end, as in the larger square, there is nothing to hide."""
    wide = scans.ANATOMY | {"size": (16, 8, 5), "origin": (1.0, 5.0, -6.0)}
    for n in range(3):
        for name, field, grid in (("mr", (99.0, *scans.MR[1:]), scans.ANATOMY), ("ct", scans.HU, wide)):
            values = scans.linear(field, scans.points_of(**grid))
            scans.metaimage(tmp_path / f"raw/{n}/{name}.mha", values, grid["spacing"], grid["origin"])
    manifest, out, _ = prepare("mr_ct", "--image_size", 20)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    alpha = scans.stack(out / "test/target", entry)[..., 1]
    x, y = (np.array(n) for n in np.meshgrid(np.arange(20) - 2, np.arange(20) - 6))  # voxels of the CT
    hidden = (x >= 0) & (x < 16) & (y >= 0) & (y < 8) & ((x < 3) | (x >= 13))
    assert hidden.sum() == 48 and ((alpha == 0) == hidden).all()


def test_cone_beam_ct_has_hounsfield_units(tmp_path, prepare):
    grid = scans.ANATOMY
    values = scans.linear((0, *scans.HU[1:]), scans.points_of(**grid))
    for n in range(3):
        for name in ("cbct", "ct"):
            scans.metaimage(tmp_path / f"raw/{n}/{name}.mha", values, grid["spacing"], grid["origin"])
    with pytest.raises(ValueError, match=r"cbct.mha: \d+% of its values are below 0, where MR has none: for CBCT or"):
        prepare("mr_ct", "--image_size", 0, "--source_name", "cbct", out="other")
    flags = ["--source_name", "cbct", "--source_values", "hounsfield", "--ct_black", -900, "--ct_white", 800]
    manifest, out, said = prepare("mr_ct", "--image_size", 12, *flags)
    window = "--source_black -900.0 --source_white 800.0 --target_black -900.0 --target_white 800.0"
    assert f"mr_ct i2sb {window}" in said
    entry = manifest["about"][manifest["splits"]["test"][0]]
    source, target = (scans.stack(out / f"test/{side}", entry) for side in ("source", "target"))
    assert source.dtype == np.int16 and (source == target).all() and (source[:, 0] == -1000).all()
    assert np.abs(source[:, 2:10, 1:11] - values).max() <= 0.51


def test_sessions_of_patients_are_not_torn_apart(mr_ct, prepare):
    for n, path in enumerate(sorted((mr_ct / "Task1/brain").iterdir())):
        patient = mr_ct / f"patient {n // 2}"
        patient.mkdir(exist_ok=True)
        path.rename(patient / f"session {n % 2}")
    with pytest.raises(ValueError, match=r"have one name, so it is not the patient's: .* --group_by '\^\[\^/\]\+'"):
        prepare("mr_ct")
    manifest, _, _ = prepare("mr_ct", "--image_size", 0, "--group_by", "^[^/]+", "--test", 0)
    assert sorted(map(len, manifest["splits"].values())) == [2, 2]


def test_mr_and_ct_with_a_mask(mr_ct, prepare):
    manifest, out, said = prepare("mr_ct", "--image_size", 0, "--neighbours", 1, "--percentile", 100)
    assert "mr_ct i2sb --source_white 1.0 --target_black -1000.0 --target_white 2000.0" in said and "--group H" in said
    for part, names in manifest["splits"].items():
        for entry in (manifest["about"][name] for name in names):
            where = scans.points(entry)
            assert entry["slices"] == [1, 2, 3, 4] and entry["grid"]["size"] == [
                10,
                8,
                5,
            ]  # the mask is empty in the first
            level = scans.linear(scans.MR, where)[1:, 1:].max()
            assert entry["white"] == pytest.approx(level)
            mr, ct = scans.stack(out / part / "source", entry), scans.stack(out / part / "target", entry)
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
    assert np.abs(volume[1:, 1:] - scans.linear(scans.HU, scans.points(entry))[1:, 1:]).max() <= 0.51


def test_a_square_larger_than_mr_and_ct(mr_ct, prepare):
    """Outside is no signal, and air."""
    for mask in mr_ct.rglob("mask*"):
        mask.unlink()
    manifest, out, _ = prepare("mr_ct", "--image_size", 20)
    entry = manifest["about"][manifest["splits"]["test"][0]]
    mr, ct = scans.stack(out / "test/source", entry), scans.stack(out / "test/target", entry)
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
    expected = (scans.linear(scans.HU, scans.points(entry)[1]) / 100).clip(-1, 1)
    assert np.abs(item.target[0].numpy() - expected)[1:].max() < 0.006 and not item.mask[0, 0].any()
    assert item.mask[0, 1:].all() and item.source.max() <= 1


def test_nifti_of_ct_and_suv(tmp_path, prepare):
    grid = dict(size=(6, 6, 4), spacing=(2.0, 2.0, 3.0), origin=(0.0, 0.0, 0.0))
    values = scans.linear(scans.HU, scans.points_of(**grid)).astype(np.float32)
    suv = (values + 100) / 20
    suv[0] = 0  # outside of the scan
    for n in range(3):
        folder, affine = tmp_path / f"raw/P{n}/day", np.diag([2.0, 2, 3, 1])
        for name, array in (("CT", values * 0), ("CTres", values), ("SUV", suv), ("PET", values)):
            scans.nifti(folder / f"{name}.nii.gz", array, affine)
    scans.series(tmp_path / "one", "PT", np.ones((1, 2, 2)), (1, 1, 1), (0, 0, 0), {"NumberOfFrames": 36}, [1])
    (tmp_path / "one").rename(tmp_path / "raw/P0/day/MIP")  # a picture that turns
    manifest, out, _ = prepare("ct_pet", "--image_size", 0)
    entry = manifest["about"][manifest["splits"]["train"][0]]
    assert entry["slices"] == [1, 2, 3] and entry["suv_factor"] == 1
    assert (scans.stack(out / "train/source", entry) == np.rint(values[1:])).all()
    assert np.abs(scans.stack(out / "train/target", entry) - suv[1:].clip(0)).max() < 1e-6 and suv.min() < -1
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
    (tmp_path / "empty").mkdir()
    scans.series(ct_pet / "PETCT_0/study/thin", "CT", np.zeros((3, 2, 2)), (1, 1, 1), (0, 0, 0))
    with pytest.raises(ValueError, match=r"study/CT and thin are both CT of one study; remove one"):
        prepare("ct_pet")
    shutil.copytree(ct_pet, tmp_path / "chosen")
    manifest, _, _ = prepare("ct_pet", "--series", "CT", source="chosen", out="chosen_out")
    assert not any("thin" in name for name in manifest["sources"]) and len(manifest["sources"]) == 60
    shutil.rmtree(ct_pet / "PETCT_0/study/thin")
    shutil.rmtree(ct_pet / "PETCT_0/study/PET")
    with pytest.raises(
        ValueError, match=r"PETCT_0/study: holds CT but no PET of 3 slices or more; add it.* give --targets false"
    ):
        prepare("ct_pet")
    with pytest.raises(ValueError, match="--ct_black 5 must be below --ct_white 5"):
        prepare("ct_pet", "--ct_black", 5, "--ct_white", 5)
    alone = ["--targets", "false", "--spacing", "2,2,3"]
    with pytest.raises(ValueError, match="empty: no folder holds a source; --help shows"):
        prepare("mr_ct", *alone, source="empty", out="none")
    for place in ("a/s", "b/s"):  # of one name, which parts nothing here
        for n, name in ((1, "mr"), (2, "ct")):
            scans.metaimage(tmp_path / f"sessions/{place}/{name}.mha", np.full((3, 4, 4), n), (1, 1, 1), (0, 0, 0))
    with pytest.raises(ValueError, match=r"a/s/mr.mha: shows nothing in any slice, or its mask hides all; remove it"):
        prepare("mr_ct", *alone, "--image_size", 0, source="sessions", out="none")
    with pytest.raises(ValueError, match="--targets false: give --spacing as that of the training's pairs"):
        prepare("ct_pet", "--targets", "false", "--spacing", "2,0,3")
    with pytest.raises(ValueError, match="--spacing has 2 numbers, expected 3"):
        prepare("ct_pet", "--spacing", "1,1")
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


@pytest.mark.parametrize("inner", ["PETCT_0/study", "PETCT_0/study/CT"])
def test_one_study_is_no_folder_of_patients(ct_pet, prepare, inner):
    with pytest.raises(ValueError, match=r"is the folder of one study, expected one that holds a folder a patient"):
        prepare("ct_pet", source=f"raw/{inner}")


def test_one_patient_of_mr(mr_ct, prepare):
    with pytest.raises(ValueError, match=r"1BA000: is the folder of one study"):
        prepare("mr_ct", "--val", 0, "--test", 0, source="raw/Task1/brain/1BA000")
