"""Where pairs come from, and what images are made of them."""

import re
from dataclasses import dataclass

from ..settings import Settings, setting

RESIZE = ("bilinear", "bicubic", "nearest")
PARTS = ("train", "val", "test", "all", "auto")


@dataclass(frozen=True)
class DataConfig(Settings):
    """Where the pairs come from; the keyword arguments of `datasets.open_data`."""

    dataset: str = setting("histology", "histology, denoising, or any name of your own for paired folders in data_dir")
    data_dir: str = setting("", "folder with the pairs", changes="nothing")
    image_size: str = setting("native", "N, HxW or native (the size of the first pair)")
    fit: str = setting("resize", "how an image of another size is fitted", choices=("resize", "crop", "stretch"))
    layout: str = setting(
        "auto", "how pairs lie in data_dir", choices=("auto", "side_by_side", "two_folders", "suffix")
    )
    source_half: str = setting("left", "side_by_side: the half that is the source", choices=("left", "right"))
    source_folder: str = setting("", "two_folders: name of the source folder (default: source or A)")
    target_folder: str = setting("", "two_folders: name of the target folder (default: target or B)")
    source_suffix: str = setting("", "suffix, two_folders: end of a source's name, such as _A of 0_A.png")
    target_suffix: str = setting("", "the same of a target; both beside a NAME that they share")
    source_resize: str = setting("bilinear", "how source pixels are resized, nearest: for masks", choices=RESIZE)
    target_resize: str = setting("bilinear", "how target pixels are resized, nearest: for masks", choices=RESIZE)
    source_black: float = setting(0.0, "value that becomes -1 in the source, as -1000 of CT", signed=True)
    target_black: float = setting(0.0, "value that becomes -1 in the target, as -1000 of CT", signed=True)
    source_white: float = setting(
        0.0, "value that becomes 1 in the source; 0: by file type (255, 65535, 1.0 of floats)", signed=True
    )
    target_white: float = setting(
        0.0, "value that becomes 1 in the target; 0: by file type (255, 65535, 1.0 of floats)", signed=True
    )
    num_classes: int = setting(0, "classes for class conditioning (sub-folders of the data); 0: none")
    mask: str = setting("none", "where all pairs are defined; circle: the one inscribed", choices=("none", "circle"))
    mask_folder: str = setting("", "folder beside the sources, or in theirs, with a mask a pair: bright inside")
    mask_suffix: str = setting(
        "", "end of a mask's name, such as _mask of NAME_mask.png, beside NAME or in mask_folder"
    )
    degrade: str = setting(
        "", "training: sources are made anew from their targets at every draw, as datasets.prepare degrade: noise:25"
    )
    group_by: str = setting(
        "", "regular expression on the paths of pairs: those with the same match, or parts in (), share a split"
    )
    skip_unreadable: bool = setting(
        False, "training passes over files that cannot be read, and lists them in the run", changes="nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.image_size)
        for side, black, white in (
            ("source", self.source_black, self.source_white),
            ("target", self.target_black, self.target_white),
        ):
            if white and white <= black:
                raise ValueError(f"--{side}_white {white:g} must be above --{side}_black {black:g}")
        if bool(self.source_folder) != bool(self.target_folder):
            raise ValueError(
                f"source_folder '{self.source_folder}' and target_folder '{self.target_folder}': give both or neither"
            )
        if self.mask_suffix and not self.mask_folder and self.mask_suffix in (self.source_suffix, self.target_suffix):
            raise ValueError(
                f"mask_suffix {self.mask_suffix} is that of a side: give masks names or a folder of their own"
            )
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise ValueError(f"--group_by '{self.group_by}' is no regular expression: {error}") from None
        if self.layout == "suffix" and self.source_suffix == self.target_suffix:
            raise ValueError(
                "layout suffix needs a suffix that tells the sides apart: set --source_suffix, e.g. _normal"
            )
        if self.layout == "side_by_side" and (self.source_suffix or self.target_suffix or self.source_folder):
            raise ValueError("layout side_by_side has both images in one file: leave out suffixes and folders")
        if self.layout == "suffix" and self.source_folder:
            raise ValueError(f"layout suffix has one folder: leave out source_folder '{self.source_folder}'")


def parse_size(text: str) -> tuple[int, int] | None:
    """`"64"` or `"64x96"` (height x width) as (height, width) in pixels; None for `"native"`."""
    if text == "native":
        return None
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text, re.ASCII)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"image_size '{text}' is no size; expected native, N or HxW in pixels, e.g. 64 or 64x96")
    return height, width


@dataclass(frozen=True)
class ImageShape:
    """What a model needs to know of its data."""

    target_channels: int
    source_channels: int
    height: int
    width: int
    num_classes: int
