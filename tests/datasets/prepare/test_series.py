"""Volumes as they come, and grids: against values and positions that are known beforehand."""

import gzip
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.prepare.grids import Grid, common, grid_of, on, onto, resized, upright
from datasets.prepare.series import is_dicom, read_volume, volume_name, whole
from tests.datasets.prepare import scans

itk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")


@pytest.fixture
def ct(tmp_path):
    scans.ct_pet_study(tmp_path / "study")
    return tmp_path / "study/CT"


def files(folder):
    return sorted(folder.iterdir())


def test_a_dicom_series_by_position_with_its_own_slopes(ct):
    for folder, field, shape, error in (
        (ct, scans.HU, scans.CT, 0.51), (ct.parent / "PET", scans.ACTIVITY, scans.PET, 0.05)
    ):  # fmt: skip
        image = read_volume(files(folder))
        assert image.GetSize() == shape["size"] and image.GetPixelID() == itk.sitkFloat32
        assert image.GetSpacing() == pytest.approx(shape["spacing"]) and image.GetOrigin() == pytest.approx(
            shape["origin"]
        )
        assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
        assert np.abs(itk.GetArrayFromImage(image) - scans.linear(field, scans.points_of(**shape))).max() < error


def test_nifti_and_metaimage(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1, 2, 3], (4, 5, 6)
    scans.nifti(tmp_path / "a.nii.gz", values, affine)
    scans.metaimage(tmp_path / "a.mha", values, (1, 2, 3), (4, 5, 6), turn)
    for path in files(tmp_path):
        image = read_volume([path])
        assert (itk.GetArrayFromImage(image) == values).all()
        assert grid_of(image).alike(Grid((2, 3, 4), (1, 2, 3), (4, 5, 6), tuple(turn.ravel())))
        assert volume_name(path) == "a"


def changed(path, **tags):
    ds = pydicom.dcmread(path)
    for key, value in tags.items():
        setattr(ds, key, value)
    ds.save_as(path)


def at(folder, z):
    return next(p for p in files(folder) if pydicom.dcmread(p).InstanceNumber == z + 1)


def test_slices_that_make_no_volume(ct, tmp_path):
    def broken(name, breaking):
        copy = shutil.copytree(ct, tmp_path / name)
        breaking(copy)
        with pytest.raises(ValueError) as caught:
            read_volume(files(copy))
        return str(caught.value)

    said = broken("missing", lambda f: [at(f, 3).unlink(), at(f, 4).unlink()])
    assert "are 7.5 mm apart, others 2.5 mm: 2 slices are missing; get them again" in said
    said = broken(
        "mixed", lambda f: [changed(at(f, z), ImagePositionPatient=[-8, -9, 20 + 2.5 * z + z - 5]) for z in (6, 7, 8)]
    )
    assert "are 3.5 mm apart, others 2.5 mm: the spacing changes; split the series" in said
    said = broken("double", lambda f: shutil.copy(at(f, 2), f / "x.dcm"))
    assert "lie at one place; remove one" in said
    said = broken("spacing", lambda f: changed(at(f, 2), PixelSpacing=[2, 3]))
    assert "PixelSpacing is [2.0, 3.0], but [2.0, 1.5] in" in said and said.endswith(
        "remove or move what does not belong to it"
    )
    said = broken(
        "tilt", lambda f: [changed(at(f, z), ImagePositionPatient=[-8, -9 + z, 20 + 2.5 * z]) for z in range(9)]
    )
    assert "shifted against each other (tilted gantry)" in said
    said = broken("two", lambda f: changed(at(f, 2), SeriesInstanceUID="1.2.3"))
    assert "two: holds slices of 2 series, expected one a folder" in said
    said = broken("truncated", lambda f: at(f, 2).write_bytes(at(f, 2).read_bytes()[:-100]))
    assert re.search(r"truncated/\S+: cannot be read \(.*", said)
    said = broken("short", lambda f: changed(at(f, 2), PixelData=b"\0" * 20))
    assert re.search(r"short/\S+: 20 bytes of pixels, expected \d+: truncated; get it again, or remove it$", said)
    said = broken("frames", lambda f: changed(at(f, 2), NumberOfFrames=2))
    assert re.search(r"frames/\S+: holds 2 frames, expected a file a slice; convert it, or leave the study out", said)
    for kind in ("RGB", "MONOCHROME1"):
        said = broken(kind, lambda f, kind=kind: changed(at(f, 2), PhotometricInterpretation=kind))
        assert re.search(rf"{kind}/\S+: holds {kind}, expected MONOCHROME2, one value a pixel; convert it", said)
    said = broken("no place", lambda f: _without(at(f, 2), "ImagePositionPatient"))
    assert "has no ImagePositionPatient, so it is no slice of a volume; remove it" in said


def _without(path, tag):
    ds = pydicom.dcmread(path)
    delattr(ds, tag)
    ds.save_as(path)


def test_other_volumes_are_refused(tmp_path):
    scans.metaimage(tmp_path / "a.mha", np.full((2, 2, 2), np.nan), (1, 1, 1), (0, 0, 0))
    with pytest.raises(ValueError, match=r"a.mha: holds NaN or infinite values"):
        read_volume([tmp_path / "a.mha"])
    (tmp_path / "b.nii.gz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b.nii.gz: cannot be read"):
        read_volume([tmp_path / "b.nii.gz"])
    scans.metaimage(tmp_path / "c.mha", np.ones((9, 9, 9)), (1, 1, 1), (0, 0, 0))
    (tmp_path / "c.mha").write_bytes((tmp_path / "c.mha").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"c.mha: cannot be read .SimpleITK cannot read it: truncated, damaged"):
        read_volume([tmp_path / "c.mha"])
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "1.2.826.0.7").write_bytes(b"\0" * 128 + b"DICM")  # as archives name them
    names = ("DICOMDIR", "IM1", "1.2.826.0.7", "b.nii.gz")
    assert [is_dicom(tmp_path / n) for n in names] == [False, True, True, False]


def test_axes_that_are_not_at_right_angles(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    scans.nifti(tmp_path / "a.nii", np.ones((3, 3, 3), np.float32), affine)
    with pytest.raises(ValueError, match=r"a.nii: cannot be read .*: its axes are not at right angles, resample it"):
        read_volume([tmp_path / "a.nii"])


@pytest.mark.parametrize("ending", [".mhd", ".nrrd"])
def test_voxels_in_a_file_of_their_own(tmp_path, ending):
    """Both are files of the volume, whose digests a manifest keeps."""
    values = np.arange(24, dtype="<f4").reshape(4, 3, 2)
    if ending == ".mhd":
        scans.metaimage(tmp_path / "a.mha", values, (1, 2, 3), (0, 0, 0))
        text = (tmp_path / "a.mha").read_bytes()[: -values.nbytes].decode().replace("LOCAL", "the voxels.raw")
    else:
        text = (
            "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\nendian: little\n"
            "space directions: (1,0,0) (0,2,0) (0,0,3)\nencoding: raw\ndata file: the voxels.raw\n\n"
        )
    path = tmp_path / f"a{ending}"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a{ending}: its voxels are in the voxels.raw, which is missing; get it"):
        whole(path)
    (tmp_path / "the voxels.raw").write_bytes(values.tobytes())
    assert whole(path) == (path, tmp_path / "the voxels.raw")
    assert (itk.GetArrayFromImage(read_volume(whole(path))) == values).all()


@pytest.mark.parametrize("names", ["LIST", "part%d.raw 0 3 1", "part%01d.raw 0 3 1", "part%d.raw 3 0 -1"])
def test_voxels_in_a_file_a_slice(tmp_path, names):
    values = np.arange(24, dtype="<f4").reshape(4, 3, 2)
    scans.metaimage(tmp_path / "a.mha", values, (1, 2, 3), (0, 0, 0))
    files = [tmp_path / f"part{n}.raw" for n in range(4)]
    listed = "".join(f"{path.name}\n" for path in files) if "LIST" in names else ""
    text = (tmp_path / "a.mha").read_bytes()[: -values.nbytes].decode().replace("LOCAL", names)
    (tmp_path / "a.mhd").write_text(text + listed)
    for path, layer in zip(files, values, strict=True):
        path.write_bytes(layer.tobytes())
    if names.endswith("-1"):  # which SimpleITK does not read
        assert whole(tmp_path / "a.mhd") == (tmp_path / "a.mhd", *files[::-1])
        return
    assert whole(tmp_path / "a.mhd") == (tmp_path / "a.mhd", *files)
    assert (itk.GetArrayFromImage(read_volume(whole(tmp_path / "a.mhd"))) == values).all()
    files[2].unlink()
    with pytest.raises(ValueError, match=r"a.mhd: its voxels are in part2.raw, which is missing; get it"):
        whole(tmp_path / "a.mhd")


@pytest.mark.parametrize("name", ["p%s%d.raw 0 3 1", "p%d.raw 0 3 0", "50% dose of 3.raw"])
def test_odd_names_of_voxels_are_names(tmp_path, name):
    (tmp_path / "a.mhd").write_text(f"NDims = 3\nElementDataFile = {name}\n")
    with pytest.raises(ValueError, match=r"a.mhd: its voxels are in .*, which is missing; get it"):
        whole(tmp_path / "a.mhd")
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile =   \n")
    assert whole(tmp_path / "a.mhd") == (tmp_path / "a.mhd",)


def test_volumes_in_one_file(tmp_path):
    scans.metaimage(tmp_path / "a.mha", np.ones((2, 2, 2)), (1, 1, 1), (0, 0, 0))
    itk.WriteImage(itk.ReadImage(str(tmp_path / "a.mha")), str(tmp_path / "a.nrrd"))
    itk.WriteImage(itk.ReadImage(str(tmp_path / "a.mha")), str(tmp_path / "a.nii"))
    for path in files(tmp_path):
        assert whole(path) == (path,)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
def test_truncated_nifti_is_refused(tmp_path, ending, order):
    """SimpleITK makes zeros of what is missing. Written by nibabel, of any order of bytes."""
    values = np.random.default_rng(0).integers(1, 99, (7, 6, 5)).astype(np.int16)
    header = nibabel.Nifti1Image(values, np.eye(4)).header.as_byteswapped(order)
    image = nibabel.Nifti1Image(values, np.eye(4), header)
    nibabel.save(image, path := tmp_path / f"a{ending}")
    found = itk.GetArrayFromImage(read_volume([path]))
    assert (found == values.transpose(2, 1, 0)).all()
    content = path.read_bytes()
    path.write_bytes(content + b"more")
    assert (itk.GetArrayFromImage(read_volume([path])) == found).all()
    if ending == ".nii.gz":
        path.write_bytes(gzip.decompress(content))  # as it is often named
        assert (itk.GetArrayFromImage(read_volume([path])) == found).all()
    for cut in (1 if ending == ".nii" else 60, len(content) // 2):
        path.write_bytes(content[:-cut])
        with pytest.raises(ValueError, match=rf"a{ending}: cannot be read \(.*(truncated|ended before|header)"):
            read_volume([path])
    path.write_bytes(b"x" * 999 if ending == ".nii" else gzip.compress(b"x" * 999))
    with pytest.raises(ValueError, match="begins with 78787878, expected the 348 bytes of a NIfTI-1 header"):
        read_volume([path])


ROTATIONS = [np.eye(3), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])[:, [1, 0, 2]] @ np.diag([1, -1, 1.0])]
ANGLE = np.deg2rad(10)
ROTATIONS.append(np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]))

sizes = st.tuples(*[st.integers(2, 6)] * 3)
steps = st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3)


@given(sizes, steps, st.sampled_from([0.0, 0.7, 2.0]), st.integers(0, 5), st.sampled_from(ROTATIONS))
def test_a_common_grid_has_the_middle_and_the_box_of_its_reference(size, spacing, asked, voxels, direction):
    reference = Grid(size, spacing, (3.0, -4.0, 5.0), tuple(direction.ravel()))
    found = common(reference, (asked, asked, 0), voxels)

    def middle(g):
        return np.array(g.origin) + np.reshape(g.direction, (3, 3)) @ ((np.array(g.size) - 1) / 2 * g.spacing)

    assert np.allclose(middle(found), middle(reference)) and found.direction == reference.direction
    assert found.spacing == (asked or spacing[0], asked or spacing[1], spacing[2])
    for n, m, a, b in zip(found.size, size, found.spacing, spacing, strict=True):
        assert (voxels and n == voxels) or abs(n * a - m * b) <= a / 2 + 1e-6 or n == 1
    assert found.size[2] == size[2]
    if not asked and not voxels:
        assert found.alike(reference)


@given(sizes, steps, st.integers(1, 9), st.integers(1, 9))
def test_resized_keeps_the_box(size, spacing, width, height):
    grid = Grid(size, spacing, (1.0, 2.0, 3.0), tuple(ROTATIONS[2].ravel()))
    found = resized(grid, width, height)
    for g in (grid, found):
        low = np.array(g.origin) - ROTATIONS[2] @ (np.array(g.spacing) / 2)
        high = low + ROTATIONS[2] @ (np.array(g.size) * g.spacing)
        assert np.allclose([low, high], getattr(test_resized_keeps_the_box, "box", [low, high])) or g is grid
        test_resized_keeps_the_box.box = [low, high]
    assert found.size == (width, height, size[2])
    assert resized(found, size[0], size[1]).alike(grid)


@pytest.mark.parametrize("direction", ROTATIONS)
def test_resampling_a_linear_field_is_exact(direction):
    """At every voxel of the other grid inside the first: the field at its position in mm; outside, the filling."""
    first = Grid((9, 8, 7), (1.0, 1.5, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    image = on(
        scans.linear(scans.HU, scans.points_of(first.size, first.spacing, first.origin)).astype(np.float32), first
    )
    other = Grid((5, 6, 7), (1.3, 0.9, 1.1), (1.0, 2.0, 1.0), tuple(direction.ravel()))
    points = scans.points_of(other.size, other.spacing, other.origin, direction)
    found = onto(image, other, -7)
    assert grid_of(found).alike(other)
    top = (np.array(first.size) - 1) * first.spacing
    inside = ((points >= 0) & (points <= top)).all(-1)
    outside = ((points < -np.array(first.spacing)) | (points > top + first.spacing)).any(-1)
    values = itk.GetArrayFromImage(found)
    assert np.abs(values - scans.linear(scans.HU, points))[inside].max() < 1e-3 and inside.sum() > 20
    assert (values[outside] == -7).all()
    assert onto(image, first, 0) is image


def test_upright_moves_voxels_not_positions():
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1.0]])
    grid = Grid((4, 3, 2), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0), tuple(turn.ravel()))
    values = scans.linear(scans.HU, scans.points_of(grid.size, grid.spacing, grid.origin, turn)).astype(np.float32)
    found = upright(on(values, grid))
    own = grid_of(found)
    assert own.direction == pytest.approx(np.eye(3).ravel()) and own.size == (3, 4, 2)
    expected = scans.linear(scans.HU, scans.points_of(own.size, own.spacing, own.origin))
    assert np.abs(itk.GetArrayFromImage(found) - expected).max() < 1e-4


def test_a_damaged_first_slice_is_not_left_out(ct):
    files(ct)[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"dcm: 0 bytes that do not begin as DICOM does; get it again, or remove it"):
        is_dicom(files(ct)[0])


def test_a_tag_without_a_value(ct):
    changed(files(ct)[2], PixelSpacing=None)
    with pytest.raises(ValueError, match="has no PixelSpacing, so it is no slice of a volume"):
        read_volume(files(ct))
