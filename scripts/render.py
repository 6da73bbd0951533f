"""The report of a run as one sheet, PNG: headings, loss curve, scores and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .page import number
from .pictures import grid
from .report_parts import LOSS, VALIDATION, heading, points
from .report_scores import Scores


def draw_curve(axes: Any, log: Sequence[dict[str, Any]]) -> None:
    """Training and validation loss against steps."""
    for key, style in (
        (LOSS, {"lw": 1, "label": "training"}),
        (VALIDATION, {"marker": "o", "ms": 3, "label": "validation, EMA"}),
    ):
        known = [(step, value) for step, value in points(log, key) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), **style)
            axes.legend()
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)


def sheet(log: Sequence[dict[str, Any]], scores: Scores, columns: Sequence[np.ndarray], lines: Sequence[str]) -> bytes:
    """The sheet; columns: source, sample and target, uint8 `[N, H, W, C]`; lines: above all."""
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12, 9), layout="constrained")
        parts = figure.add_gridspec(2, 2, height_ratios=[1, 2.2])
        draw_curve(figure.add_subplot(parts[0, 0]), log)
        text = figure.add_subplot(parts[0, 1])
        text.axis("off")
        cells = [[number(scores.mean(row, name)) for name in scores.own] for row in scores.rows]
        headings = [heading(name) for name in scores.own]
        table = text.table(cells, rowLabels=list(scores.rows), colLabels=headings, loc="center", cellLoc="right")
        table.scale(0.8, 1.5)
        figure.suptitle("\n".join(lines), fontsize=10)
        shown = figure.add_subplot(parts[1, :])
        shown.imshow(grid(columns, rows=6, groups=5), interpolation="nearest")
        shown.axis("off")
        shown.set_title("source | sample | target")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
