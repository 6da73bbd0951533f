"""Medical volumes in slices: CT → PET, MR → CT."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddbm.settings import setting

from ..images import Picture
from ..listing import walk
from .grids import common, covered, grid_of, onto, upright
from .recipe import OFFICIAL, Job, Made, Pair, Plan, Recipe, Split, completed, flat, folder_of, grouping, official
from .series import header, is_dicom, read_volume, refuse_frames, toolkit, volume_name, whole
from .suv import suv_factor

GRIDS = """Both sides are turned to LPS and resampled, trilinear, onto one grid: that of the {reference}, with --spacing
x,y,z in mm (0: its own) and --image_size voxels about its middle (0: all). Every axial slice is a pair, unless a side
is constant there; --neighbours N gives the source the N slices below and above it, too (2.5-D). Patients stay in one
part. TIFF keeps {units}; the window is a setting of training, in the command that is printed.
`python -m datasets.prepare back` writes translated slices as volumes with the geometry of the source. --targets false
prepares sources alone, of new patients, on their own grid with the --spacing (and other settings) of the training's."""
CT_PET = f"""CT → PET of one scanner (such as FDG-PET-CT-Lesions, 1,014 studies)

From https://doi.org/10.7937/gkr0-xv29 (Gatidis, Küstner 2022; TCIA; CC BY 4.0, heads removed) as DICOM or from
https://fdat.uni-tuebingen.de/records/wf9fy-txq84 as NIfTI, some 300 GB. --source: a folder with a folder a patient, and
in it studies of either kind,

  PETCT_0011f3deaf/STUDY/CT-SERIES/*.dcm  PETCT_0011f3deaf/STUDY/PET-SERIES/*.dcm
  PETCT_0011f3deaf/STUDY/CTres.nii.gz or CT.nii.gz  PETCT_0011f3deaf/STUDY/SUV.nii.gz

PET of DICOM becomes SUV, activity times body weight over dose, from its headers; NIfTI is taken for SUV. Where PET
reaches beyond CT, the pairs are masked.

{GRIDS.format(reference="PET", units="Hounsfield units and SUV")}"""
MR_CT = f"""MR → CT, registered (SynthRAD2023 and 2025)

From https://doi.org/10.5281/zenodo.7260704 (2023) and https://doi.org/10.5281/zenodo.14918089 (2025; Thummerer et al.;
CC BY-NC 4.0), 11 to 15 GB a task. --source: a folder that holds, at any depth, a folder a patient with

  Task1/brain/1BA001/mr.nii.gz  ct.nii.gz  mask.nii.gz        or .mha; cbct for --source_name cbct

The mask, where there is one, becomes that of the pairs. Of MR, which has no unit, the --percentile of a volume
becomes 1; CBCT has Hounsfield units, so --source_name cbct --source_values hounsfield keeps them. Where a CT reaches
beyond its source, the pairs are masked.

{GRIDS.format(reference="CT", units="Hounsfield units")}"""


@dataclass(frozen=True)
class Volumes(Split):
    """Files in, pairs out."""

    spacing: tuple[float, ...] = setting((0.0, 0.0, 0.0), "mm between voxels in x, y, z; 0: as they are")
    image_size: int = setting(256, "voxels of a slice in x and y, cut or padded; 0: as they are")
    neighbours: int = setting(0, "slices below, and as many above, that the source has beside its own")
    targets: bool = setting(True, "whether studies have targets; false: sources alone, to be translated")
    group_by: str = setting("", "regular expression of the patient in the path, its first bracket; default: a folder")
    ct_black: float = setting(-1000.0, "Hounsfield units that training takes for black", signed=True)
    ct_white: float = setting(1000.0, "Hounsfield units that training takes for white", signed=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.spacing) != 3:
            raise ValueError(f"--spacing has {len(self.spacing)} numbers, expected 3: x,y,z in mm, such as 1,1,3")
        if self.ct_black >= self.ct_white:
            raise ValueError(f"--ct_black {self.ct_black:g} must be below --ct_white {self.ct_white:g}")
        if not (self.targets or all(self.spacing)):
            raise ValueError("--targets false: give --spacing as that of the training's pairs, in their manifest.json")


@dataclass(frozen=True)
class CtPet(Volumes):
    """Files in, pairs out."""

    image_size: int = setting(256, "voxels of a slice in x and y, cut or padded; 0: as they are")
    pet: str = setting("suv", "values of PET from DICOM", choices=("suv", "stored"))
    pet_white: float = setting(10.0, "SUV that training takes for white", above=0)
    series: str = setting("", "word in the names of the folders of DICOM series, where a study has several of a kind")


@dataclass(frozen=True)
class MrCt(Volumes):
    """Files in, pairs out."""

    ct_white: float = setting(2000.0, "Hounsfield units that training takes for white", signed=True)
    percentile: float = setting(99.5, "of the voxels of an MR, above 0 and in the mask, that becomes white", above=0)
    source_values: str = setting(
        "percentile", "sources as shares of the --percentile, or as they are", choices=("percentile", "hounsfield")
    )
    source_name: str = setting("mr", "name of the sources")
    target_name: str = setting("ct", "name of the targets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.percentile > 100:
            raise ValueError(f"--percentile is {self.percentile:g}, expected 100 at most")


AIR = -1000.0  # Hounsfield units
FAINT, RARE = 0.05, 0.02  # values of an MR, of white, and shares of voxels that are no matter
MODALITIES = {"CT": "source", "PT": "target"}
Study = dict[str, tuple[Path, ...]]  # side -> its files


def plan_of(settings: Volumes, studies: dict[Path, Study], patient: dict[Path, str]) -> Plan:
    """The jobs of studies, by their folders; patient: who each is of, unless --group_by says it."""
    root, group = folder_of(settings), grouping(settings.group_by)
    refuse_root(root, studies)
    names = {folder.relative_to(root).as_posix(): folder for folder in studies}
    if not names:
        what = "both volumes of a pair" if settings.targets else "a source"
        raise ValueError(f"{root}: no folder holds {what}; --help shows what is looked for")
    if settings.targets:
        known = {name: official(folder / "volume", root) for name, folder in names.items()}
        parts = completed(known, settings, "patients", lambda n: group(n) if settings.group_by else patient[names[n]])
    else:
        parts = dict.fromkeys(names, "test")
    jobs = []
    for name, folder in names.items():
        sides = studies[folder]
        files = tuple(path for side in sides.values() for path in side)
        jobs.append(Job(name, parts[name], files, {side: len(paths) for side, paths in sides.items()}))
    return Plan(flat(jobs), len(jobs))


def refuse_root(root: Path, studies: Iterable[Path]) -> None:
    """Raises ValueError where volumes lie in no folder of their own below the root."""
    if any(folder == root or root not in folder.parents for folder in studies):
        raise ValueError(f"{root}: is the folder of one study, expected one that holds a folder a patient; give that")


def plan_mr_ct(settings: MrCt) -> Plan:
    studies: dict[Path, Study] = {}
    wanted = {settings.source_name.lower(): "source", settings.target_name.lower(): "target", "mask": "mask"}
    for path, system in sorted(walk(folder_of(settings))):
        if not system and (side := wanted.get(volume_name(path).lower())):
            study = studies.setdefault(path.parent, {})
            if side in study:
                raise ValueError(f"{path}: has the name of {study[side][0].name}; remove one")
            study[side] = whole(path)
    if not settings.targets:
        studies = sources_of(studies)
    for folder, study in studies.items():
        for side, name in (("source", settings.source_name), ("target", settings.target_name)):
            if side not in study and (side == "source" or settings.targets):
                raise ValueError(
                    f"{folder}: holds no {name}.nii.gz or .mha beside {next(iter(study.values()))[0].name}; add it"
                )
    known: dict[tuple[str, str], Path] = {}
    for folder in studies if settings.targets and not settings.group_by else ():
        other = known.setdefault((official(folder / "volume", folder_of(settings)), folder.name), folder)
        if other != folder:
            raise ValueError(
                f"{other} and {folder} have one name, so it is not the patient's: give what of the path is, such as "
                "--group_by '^[^/]+' for the first folder"
            )
    return plan_of(settings, studies, {folder: folder.name for folder in studies})


def plan_ct_pet(settings: CtPet) -> Plan:
    root = folder_of(settings)
    names = {"ctres": "source", "ct": "source", "suv": "target"}
    slices: dict[Path, list[Path]] = {}
    files: dict[Path, dict[str, Path]] = {}
    for path, system in sorted(walk(root)):
        if system:
            continue
        if volume_name(path).lower() in names:
            files.setdefault(path.parent, {})[volume_name(path).lower()] = path
        elif is_dicom(path):
            slices.setdefault(path.parent, []).append(path)
    studies: dict[Path, Study] = {}
    for folder, found in files.items():
        for name in ("ct", "ctres", "suv"):  # ctres, which lies on the grid of PET already, before ct
            if name in found:
                studies.setdefault(folder, {})[names[name]] = whole(found[name])
    several: dict[tuple[Path, str], list[Path]] = {}  # folders of series, by study and side
    overviews: dict[tuple[Path, str], list[Path]] = {}
    frames: dict[Path, tuple[Path, Any]] = {}
    for folder, paths in slices.items():
        heads = ((path, header(path, ["Modality", "NumberOfFrames"])) for path in paths)  # a report may come first
        path, head = next(((p, head) for p, head in heads if head.get("Modality") in MODALITIES), (paths[0], None))
        if head is None or (head.Modality == "PT" and not settings.targets):
            continue
        place = several if len(paths) > 2 else overviews
        place.setdefault((folder.parent, MODALITIES[head.Modality]), []).append(folder)
        frames[folder] = path, head
    for folder, side in overviews.keys() - several.keys():
        for inner in overviews[folder, side] if side not in studies.get(folder, {}) else ():
            refuse_frames(*frames[inner])  # all slices may be in one file
    for (folder, side), found_here in several.items():
        chosen = [series for series in found_here if settings.series in series.name] if found_here[1:] else found_here
        if len(chosen) != 1:
            kind = {"source": "CT", "target": "PET"}[side]
            raise ValueError(
                f"{found_here[0]} and {found_here[1].name} are both {kind} of one study; remove one, or give a word in "
                "the other's name by --series"
            )
        studies.setdefault(folder, {})[side] = tuple(slices[chosen[0]])
    refuse_root(root, studies)
    if not settings.targets:
        studies = sources_of(studies)
    for folder, study in studies.items():
        if len(study) < 2 and settings.targets:
            there, missing = ("CT", "PET") if "source" in study else ("PET", "CT")
            for inner in {path.parent for path in next(iter(study.values()))} & slices.keys():
                series = {str(header(path, ["SeriesInstanceUID"]).get("SeriesInstanceUID")) for path in slices[inner]}
                if len(series) > 1:
                    raise ValueError(f"{inner}: holds slices of {len(series)} series; give each a folder of its own")
            remedy = "; of patients to translate give --targets false" if there == "CT" else ""
            raise ValueError(
                f"{folder}: holds {there} but no {missing} of 3 slices or more; add it, or remove this{remedy}"
            )
    return plan_of(settings, studies, {folder: first_of(folder.relative_to(root).parts) for folder in studies})


def sources_of(studies: dict[Path, Study]) -> dict[Path, Study]:
    """Those studies that have a source, without their targets."""
    return {
        folder: {side: files for side, files in study.items() if side != "target"}
        for folder, study in studies.items() if "source" in study
    }  # fmt: skip


def first_of(parts: Sequence[str]) -> str:
    """The folder of a patient, the first but for train, val and test."""
    return next((part for part in parts if part.lower() not in OFFICIAL), parts[-1])


def make(settings: Volumes, job: Job) -> Made:
    itk = toolkit()
    if settings.workers:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sides, files = {}, list(job.files)
    for side, count in job.more.items():
        sides[side], files = files[:count], files[count:]
    source = read_volume(sides["source"])
    own, source, pet = grid_of(source), upright(source), isinstance(settings, CtPet)
    target = upright(read_volume(sides["target"])) if "target" in sides else None
    grid = common(grid_of(source if target is None else target), settings.spacing, settings.image_size)
    seen = None
    if "mask" in sides:
        seen = itk.GetArrayFromImage(onto(upright(read_volume(sides["mask"])), grid, 0, nearest=True)) > 0.5
    if target is not None and (hidden := covered(target, grid) & ~covered(source, grid)).any():
        seen = ~hidden if seen is None else seen & ~hidden
    units = not isinstance(settings, MrCt) or settings.source_values == "hounsfield"
    x = itk.GetArrayFromImage(onto(source, grid, AIR if units else 0.0))
    y = None if target is None else itk.GetArrayFromImage(onto(target, grid, 0.0 if pet else AIR))
    about: dict[str, Any] = {"name": job.name.replace("/", "_"), "grid": asdict(grid), "source": asdict(own)}
    about["fill"] = 0.0 if pet else settings.ct_black
    if units:
        x = hounsfield(x)
    elif isinstance(settings, MrCt):
        about["white"] = white_of(x, seen, settings.percentile, sides["source"][0])
        x = (x / about["white"]).clip(0)
    if y is not None and isinstance(settings, CtPet):
        suv = settings.pet == "suv" and is_dicom(sides["target"][0])
        about["suv_factor"] = suv_factor(sides["target"]) if suv else 1.0
        y = (y * about["suv_factor"]).clip(0)
    elif y is not None:
        y = hounsfield(y)
    both = [side for side in (x, y) if side is not None]
    kept = [z for z in range(len(x)) if all(np.ptp(a[z]) > 0 for a in both) and (seen is None or seen[z].any())]
    if not kept:
        if y is None:
            raise ValueError(f"{sides['source'][0]}: shows nothing in any slice, or its mask hides all; remove it")
        raise ValueError(
            f"{sides['source'][0]} and {sides['target'][0]} share no slice in which both show something: they lie "
            "apart, or one of them, or the mask, is empty; remove the study"
        )
    reach = np.arange(-settings.neighbours, settings.neighbours + 1)

    def pairs() -> Iterator[Pair]:
        for z in kept:
            mask = None if seen is None or seen[z].all() else seen[z]
            beside = np.moveaxis(x[(z + reach).clip(0, len(x) - 1)], 0, -1)
            target = None if y is None else Picture(y[z][..., None], mask)
            yield Pair(f"{about['name']}_z{z:04d}", Picture(beside, mask), target)

    return Made(pairs(), about | {"slices": kept})


def hounsfield(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(-32768, 32767).astype(np.int16)


def white_of(values: np.ndarray, mask: np.ndarray | None, percentile: float, path: Path) -> float:
    """The value of an MR below which so many percent of its voxels are, of those above 0 and in the mask.

    Raises ValueError for a volume that is none of MR, which has values from 0 up but for what resampling made.
    """
    inside = values if mask is None else values[mask]
    if not (inside > 0).any():
        raise ValueError(f"{path}: holds no value above 0{'' if mask is None else ' in its mask'}; remove the patient")
    white = float(np.percentile(inside[inside > 0], percentile))
    if (below := float((inside < -FAINT * white).mean())) > RARE:
        raise ValueError(
            f"{path}: {below:.0%} of its values are below 0, where MR has none: for CBCT or CT give --source_values "
            "hounsfield; shift what was made to have mean 0"
        )
    return white


def flags_ct_pet(settings: CtPet) -> dict[str, Any]:
    return {"source_black": settings.ct_black, "source_white": settings.ct_white, "target_white": settings.pet_white}


def flags_mr_ct(settings: MrCt) -> dict[str, Any]:
    window = {"target_black": settings.ct_black, "target_white": settings.ct_white}
    if settings.source_values == "hounsfield":
        return {"source_black": settings.ct_black, "source_white": settings.ct_white} | window
    return {"source_white": 1.0} | window


def training_ct_pet(settings: CtPet) -> tuple[str, dict[str, Any]]:
    return "ct_pet", flags_ct_pet(settings) | {"image_size": settings.image_size or "native"}


def training_mr_ct(settings: MrCt) -> tuple[str, dict[str, Any]]:
    symmetric = {"layers": "tied", "group": "H", "augment": "H"}
    own = {"image_size": settings.image_size or "native", "batch_size": 16}
    return "mr_ct", flags_mr_ct(settings) | own | symmetric


CT_PET_RECIPE = Recipe(CtPet, CT_PET, plan_ct_pet, make, training_ct_pet, flags_ct_pet)
MR_CT_RECIPE = Recipe(MrCt, MR_CT, plan_mr_ct, make, training_mr_ct, flags_mr_ct)
