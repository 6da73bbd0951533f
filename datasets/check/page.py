"""The page: what page.html.j2 shows of a check."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import StrictUndefined, Template
from matplotlib.figure import Figure
from PIL import Image

from ddbm.config import DataConfig

from ..images import scaled
from ..layouts import Pair
from ..paired import read_pair, sides_of
from .findings import Finding
from .looks import BINS, Look

SHOWN, WORST = 24, 8  # pairs of the contact sheet, and of a fault
SIDE = 160  # pixels of a picture, at most


class Shown(NamedTuple):
    """A pair on the page; pictures: of source, target and where their edges differ, as addresses of data."""

    caption: str
    pictures: list[str]


def page(
    name: str, rows: Sequence[Sequence[str]], notices: Sequence[str], wrong: Sequence[Finding], looks: Sequence[Look],
    pairs: Mapping[tuple[str, str], Pair], orientations: tuple[str, Mapping[str, float]], command: str, layout: str,
    options: DataConfig,
) -> str:  # fmt: skip
    """The whole page; pairs: those of all looks, by split and name."""

    def shown(each: Look) -> Shown:
        read = read_pair(pairs[each.split, each.name], layout, sides_of(options), options.source_half)
        images = [_picture(picture.pixels, side.white or picture.white, side.black)
                  for picture, side in zip(read, sides_of(options), strict=True)]  # fmt: skip
        both = np.stack([images[0].mean(-1), images[1].mean(-1), images[1].mean(-1)], -1)  # red and cyan
        off = f", off by {each.shift[0]} rows, {each.shift[1]} columns" if any(each.shift) else ""
        return Shown(f"{each.split}/{each.name}{off}", [_png(image) for image in (*images, both.astype(np.uint8))])

    by_name: dict[str, list[Look]] = {}
    for each in looks:
        by_name.setdefault(each.name, []).append(each)
    faults = [(each, [shown(one) for name in each.names[:WORST] for one in by_name.get(name, [])]) for each in wrong]
    chosen = sorted({round(n) for n in np.linspace(0, len(looks) - 1, min(SHOWN, len(looks)))})
    text = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.render(
        name=name, head=rows[0], rows=rows[1:], notices=notices, faults=faults, command=command,
        sheet=[shown(looks[n]) for n in chosen], group=orientations[0], off=orientations[1], chart=_charts(looks),
    )  # fmt: skip


def _picture(pixels: np.ndarray, white: float, black: float) -> np.ndarray:
    """uint8 [h, w, 3] of pixels [H, W, C] of any type, as a training sees them."""
    try:
        values = scaled(pixels, white, Path(), black).numpy()
    except ValueError:  # values that need a white: their own range
        low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
        values = np.moveaxis((pixels - low) / max(high - low, 1e-12) * 2 - 1, -1, 0)
    bytes_ = np.moveaxis(np.rint((values[:3] if len(values) >= 3 else values[:1].repeat(3, 0)) * 127.5 + 127.5), 0, -1)
    image = Image.fromarray(np.ascontiguousarray(bytes_.astype(np.uint8)))
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _charts(looks: Sequence[Look]) -> str:
    """Histograms of the values, how far targets lie off, and which way edges run, as SVG."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    values, shifts = figure.subplots(1, 2)
    for side, name in enumerate(("source", "target")):
        counts = np.sum([each.sides[side].histogram for each in looks], 0)
        values.stairs(counts / max(counts.sum(), 1), np.linspace(0, 1, BINS + 1), label=name)
    values.set(title="values", xlabel="from black to white")
    values.legend()
    distances = [float(np.hypot(*each.shift)) for each in looks]
    shifts.hist(distances, bins=np.arange(-0.5, max(distances) + 1.5).tolist())
    shifts.set(title="targets off their sources", xlabel="pixels", ylabel="pairs")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
