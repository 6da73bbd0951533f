"""A contact sheet: pairs as the project's own reader finds them, source beside target."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ddbm.files.storage import write_whole

from ..catalogue import open_data

SHEET = "contact_sheet.png"
SIDE = 96  # pixels
COUNT = 6  # pairs a part
GAP, HEAD = 4, 14


def write_sheet(out: Path, name: str, parts: Mapping[str, int], flags: Mapping[str, Any]) -> None:
    """Writes a few pairs of every part in a row. Raises ValueError where the reader finds another number of them."""
    shown = dict(flags) | {"image_size": str(SIDE), "fit": "resize"}
    sheet = Image.new("RGB", (COUNT * (2 * SIDE + GAP), len(parts) * (SIDE + HEAD)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (part, count) in enumerate(parts.items()):
        data = open_data(name, part, data_dir=str(out), **shown)
        if len(parts) > 1 and len(data) != count:
            raise ValueError(f"{out}: {part} holds {len(data)} pairs, expected {count}; remove it and begin anew")
        top = row * (SIDE + HEAD)
        draw.text((2, top + 1), f"{part}: {count} pairs, source | target", fill="black")
        for column in range(min(COUNT, len(data))):
            item = data.get(column * len(data) // min(COUNT, len(data)), None)
            for k, side in enumerate((item.source, item.target)):
                place = (column * (2 * SIDE + GAP) + k * SIDE, top + HEAD)
                sheet.paste(Image.fromarray(visible(side)), place)
    file = io.BytesIO()
    sheet.save(file, "png")
    write_whole(out / SHEET, file.getvalue())


def visible(image: Tensor) -> np.ndarray:
    """[C, H, W] in [-1, 1] as uint8 [H, W, 3]: of other than three channels the middle one, in grey."""
    channels = image if len(image) == 3 else image[len(image) // 2].expand(3, -1, -1)
    return ((channels + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
