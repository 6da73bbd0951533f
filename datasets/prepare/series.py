"""Volumes as they come: NIfTI, MetaImage and NRRD files, and folders of DICOM slices; read by SimpleITK.

Positions, spacings and directions are SimpleITK's: millimetres, x to the left, y to the back, z to the head (LPS).
"""

import gzip
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..images import told

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
DICOM = (".dcm", ".ima")  # other names are as good, such as 1.2.840.113619.2.55
TAGS = [
    "SeriesInstanceUID", "PatientID", "Modality", "PhotometricInterpretation", "BitsAllocated", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    "ImagePositionPatient",
]  # fmt: skip
NIFTI = (("8h", 40), ("h", 72), ("f", 108))  # where its header has the axes, bits of a voxel and place of the first
VOXELS = re.compile(r"^(?:ElementDataFile|data ?file) *[=:] *(\S.*?) *$", re.MULTILINE | re.IGNORECASE)
SLICES = re.compile(r"([^%]*%0?\d*d[^%]*?) +(-?\d+) +(-?\d+) +(-?[1-9]\d*)(?: +\d+)?")
GREY = "MONOCHROME2"
EVEN = 0.01  # by which the distances of slices may differ, of the usual distance


def toolkit() -> ModuleType:
    """SimpleITK. Raises ValueError with the remedy where it is missing."""
    try:
        import SimpleITK
    except ImportError:
        raise ValueError("medical volumes are read by SimpleITK and pydicom: pip install -e '.[medical]'") from None
    return SimpleITK


def volume_name(path: Path) -> str:
    """The name of a volume file without its ending; "" for other files."""
    end = next((end for end in ENDINGS if path.name.lower().endswith(end)), "")
    return path.name[: -len(end)] if end else ""


def whole(path: Path) -> tuple[Path, ...]:
    """A volume file, and those of its voxels where it names others. Raises ValueError where that is missing."""
    if path.suffix.lower() not in (".mhd", ".nrrd"):
        return (path,)
    if path.suffix.lower() == ".mhd":
        head = path.read_text(encoding="latin-1")
    else:  # voxels may follow
        with path.open("rb") as file:
            head = file.read(1 << 20).replace(b"\r", b"").split(b"\n\n")[0].decode("latin-1")
    found = VOXELS.search(head)
    if not found or found[1].upper() == "LOCAL":
        return (path,)
    names, words = [found[1]], found[1].split()
    if words[0].upper() == "LIST":
        names = [line.strip() for line in head[found.end() :].splitlines() if line.strip()]
    elif pattern := SLICES.fullmatch(found[1]):  # such as ct%03d.raw 1 90 1
        first, last, step = (int(pattern[n]) for n in (2, 3, 4))
        names = [pattern[1] % n for n in range(first, last + (1 if step > 0 else -1), step)]
    for name in names:
        if not (path.parent / name).is_file():
            raise ValueError(f"{path}: its voxels are in {name}, which is missing; get it, or store both in one file")
    return path, *(path.parent / name for name in names)


def is_dicom(path: Path) -> bool:
    """By its first bytes; a DICOMDIR is none. Raises ValueError for a file that is named as DICOM and is none."""
    if path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        found = file.read(132)[128:] == b"DICM"
    if not found and path.suffix.lower() in DICOM:  # else a series would end before it, which nobody sees
        size = path.stat().st_size
        raise ValueError(f"{path}: {size} bytes that do not begin as DICOM does; get it again, or remove it")
    return found


def header(path: Path, tags: Sequence[str] | None = None) -> Any:
    """The tags of a DICOM file, without pixels. Raises ValueError, naming it."""
    toolkit()
    import pydicom

    with told(path):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=None if tags is None else list(tags))


def read_volume(files: Sequence[Path]) -> Any:
    """One volume, or all slices of one DICOM series, as a float32 image of three axes. Raises ValueError.

    files: those slices, or what `whole` gives.
    """
    itk = toolkit()
    if volume_name(files[0]):
        with told(files[0]):
            refuse_short(files[0])
            try:
                image = itk.ReadImage(str(files[0]), itk.sitkFloat32)
            except RuntimeError as error:  # whose text is long, or says that the file is not there
                sheared = "orthonormal" in str(error)
                why = "its axes are not at right angles, resample it" if sheared else "truncated, damaged, or none such"
                raise ValueError(f"SimpleITK cannot read it: {why}") from None
            if image.GetDimension() != 3:
                raise ValueError(f"{image.GetDimension()} axes, expected a volume of 3")
    else:
        reader = itk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in in_order(files)])
        reader.SetOutputPixelType(itk.sitkFloat32)  # each slice by its own slope
        try:
            image = reader.Execute()
        except RuntimeError as error:  # whose text names no file
            for path in files:
                with told(path):
                    itk.ReadImage(str(path))
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{files[0].parent}: cannot be read as one volume ({reason}); remove what differs"
            ) from None
    if not np.isfinite(itk.GetArrayViewFromImage(image)).all():
        raise ValueError(f"{files[0]}: holds NaN or infinite values, expected finite ones; repair or remove it")
    return image


def refuse_short(path: Path) -> None:
    """Raises ValueError for a NIfTI file with less than its header says, of which SimpleITK makes up the rest."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    with path.open("rb") as plain, gzip.open(plain) if plain.peek(2)[:2] == b"\x1f\x8b" else plain as file:
        head = file.read(348)
        order = ">" if head[:2] == b"\0\0" else "<"
        if head[:4] != struct.pack(f"{order}i", len(head)):
            raise ValueError(f"begins with {head[:4].hex()}, expected the 348 bytes of a NIfTI-1 header")
        axes, (bits,), (start,) = (struct.unpack_from(order + kind, head, at) for kind, at in NIFTI)
        wanted, found = int(start) + math.prod(axes[1 : 1 + axes[0]]) * bits // 8, len(head)
        while found < wanted and (block := file.read(min(1 << 20, wanted - found))):
            found += len(block)
    if found < wanted:
        raise ValueError(f"truncated: {found} of {wanted} bytes")


def refuse_frames(path: Path, tags: Any) -> None:
    """Raises ValueError for several slices in one file."""
    if (frames := int(tags.get("NumberOfFrames") or 1)) != 1:
        raise ValueError(f"{path}: holds {frames} frames, expected a file a slice; convert it, or leave the study out")


def refuse_short_slice(path: Path, tags: Any) -> None:
    """Raises ValueError for a DICOM slice with less pixels than its header says, or of other values."""
    import pydicom

    refuse_frames(path, tags)
    if (kind := str(tags.get("PhotometricInterpretation") or GREY)) != GREY:  # SimpleITK would invert MONOCHROME1
        raise ValueError(f"{path}: holds {kind}, expected {GREY}, one value a pixel; convert it")
    with told(path):  # the value itself is not read
        pixels: Any = pydicom.dcmread(path, defer_size=64, specific_tags=["PixelData"])
        pixels = pixels.get_item(0x7FE00010, keep_deferred=True)
    wanted = tags.Rows * tags.Columns * int(tags.get("BitsAllocated") or 8) // 8
    found = 0 if pixels is None else getattr(pixels, "length", None) or len(pixels.value or b"")
    if found < wanted:  # of compressed pixels it is the largest number
        raise ValueError(f"{path}: {found} bytes of pixels, expected {wanted}: truncated; get it again, or remove it")


def in_order(files: Sequence[Path]) -> list[Path]:
    """The slices of a series from its first to its last. Raises ValueError for slices of several, missing or uneven."""
    folder, found = files[0].parent, [(path, header(path, TAGS)) for path in sorted(files)]
    for tag in TAGS[-5:]:
        for path, tags in found:
            if tag not in tags or tags[tag].value in (None, ""):
                raise ValueError(f"{path}: has no {tag}, so it is no slice of a volume; remove it")
    series = {str(tags.get("SeriesInstanceUID")) for _, tags in found}
    if len(series) > 1:
        raise ValueError(f"{folder}: holds slices of {len(series)} series, expected one a folder; move the others")
    first = found[0][1]
    for path, tags in found:
        refuse_short_slice(path, tags)
        for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            if not np.allclose(tags[tag].value, first[tag].value, atol=1e-4):
                raise ValueError(
                    f"{path}: {tag} is {tags[tag].value}, but {first[tag].value} in {found[0][0].name}; a series has "
                    "one, so remove or move what does not belong to it"
                )
    across = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(*across)
    places = np.array([tags.ImagePositionPatient for _, tags in found], float)
    order = np.argsort(places @ normal, kind="stable")
    steps = np.diff(places[order], axis=0)
    gaps, names = steps @ normal, [found[i][0] for i in order]
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    for i, gap in enumerate(gaps):
        both = f"{names[i]} and {names[i + 1].name}"
        if gap < 1e-3:
            raise ValueError(f"{both} lie at one place; remove one")
        if abs(gap - usual) > EVEN * usual:
            whole = abs(gap / usual - round(gap / usual)) < 0.1 and gap > usual
            what = f"{round(gap / usual) - 1} slices are missing" if whole else "the spacing changes"
            remedy = "get them again" if whole else "split the series there"
            raise ValueError(
                f"{both} are {gap:g} mm apart, others {usual:g} mm: {what}; {remedy}, or leave the study out"
            )
        if np.linalg.norm(steps[i] - gap * normal) > EVEN * usual:
            raise ValueError(
                f"{both}: slices are shifted against each other (tilted gantry); resample the series first"
            )
    return names
