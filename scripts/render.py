"""Turns the contents of a report into one HTML page with its pictures inside, and into one PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .pictures import grid

Metrics = dict[str, dict[str, float | None]]
ARROWS = {"mse": "↓", "psnr": "↑", "ssim": "↑"}

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2rem; } .note { opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; } tr.own { font-weight: 600; }
img { max-width: 100%; height: auto; background: white; } .pixels { image-rendering: pixelated; }
"""


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def draw_curve(axes: Any, log: Sequence[dict[str, Any]]) -> None:
    """Training and validation loss against steps."""
    logged = [r for r in log if r.get("loss") is not None]
    axes.plot([r["step"] for r in logged], [r["loss"] for r in logged], lw=1, label="training")
    checked = [r for r in log if "val_loss" in r]
    axes.plot(
        [r["step"] for r in checked],
        [r["val_loss"] for r in checked],
        "o-",
        ms=3,
        label="validation, EMA",
    )
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def save(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def picture(
    log: Sequence[dict[str, Any]], metrics: Metrics, columns: Sequence[np.ndarray], lines: Sequence[str]
) -> bytes:
    """Headings, loss curve, table and grid on one sheet, as PNG."""
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12, 9), layout="constrained")
        sheet = figure.add_gridspec(2, 2, height_ratios=[1, 2.2])
        draw_curve(figure.add_subplot(sheet[0, 0]), log)
        text = figure.add_subplot(sheet[0, 1])
        text.axis("off")
        names = list(next(iter(metrics.values())))
        cells = [[number(row[name]) for name in names] for row in metrics.values()]
        headings = [f"{name} {ARROWS[name]}" for name in names]
        table = text.table(cells, rowLabels=list(metrics), colLabels=headings, loc="center", cellLoc="right")
        table.scale(0.8, 1.5)
        figure.suptitle("\n".join(lines), fontsize=10)
        shown = figure.add_subplot(sheet[1, :])
        shown.imshow(grid(columns, rows=6, groups=5), interpolation="nearest")
        shown.axis("off")
        shown.set_title("source | sample | target")
        return save(figure)


def html(
    *,
    title: str,
    summary: str,
    verdict: str,
    log: Sequence[dict[str, Any]],
    metrics: Metrics,
    columns: Sequence[np.ndarray],
    certificate: dict[str, Any] | None,
    turned: Image.Image | None,
    settings: Sequence[tuple[str, str]],
) -> str:
    """The page; `columns` are source, sample, target as uint8 NHWC."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    draw_curve(figure.add_subplot(), log)
    names = list(next(iter(metrics.values())))
    rows = [
        f"<tr{' class=own' if i == 0 else ''}><td>{escape(name)}</td>"
        + "".join(f"<td>{number(row[n])}</td>" for n in names)
        + "</tr>"
        for i, (name, row) in enumerate(metrics.items())
    ]
    listed = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in settings]
    heads = "".join(f"<th>{n} {ARROWS[n]}</th>" for n in names)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1><p class="note">{escape(summary)}</p><p>{escape(verdict)}</p>
<h2>Source | sample | target</h2>
{embed(png(grid(columns, rows=8, groups=3)), "source, sample and target side by side", "pixels")}
<h2>Against the target</h2>
<div class="scroll"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>
<p class="note">Means over images; mse on [0, 1], psnr in dB. The source itself and a least-squares map of 7×7 source
pixels, fitted on the training split, are the baselines to beat.</p>
<h2>Equivariance</h2>{equivariance(certificate, turned)}
<h2>Loss</h2>{embed(save(figure), "loss against steps")}
<h2>Settings</h2><div class="scroll"><table>{"".join(listed)}</table></div>
</body></html>
"""


def equivariance(certificate: dict[str, Any] | None, turned: Image.Image | None) -> str:
    """The certificate as a table and its picture."""
    if certificate is None or turned is None:
        return "<p>Not defined: the run has no group, and its training pairs were not turned.</p>"
    rows = []
    for line in certificate["summary"]:
        delta = "–" if line["delta_x0"] is None else f"{line['delta_x0']:.1e}"
        changed = "–" if line["changed"] is None else f"{line['changed']:.3%}"
        numbers = (f"{line['mean']:.1e}", f"{line['largest']:.1e}", delta, changed)
        cells = "".join(f"<td>{value}</td>" for value in (line["precision"], *numbers))
        rows.append(f"<tr><td>{escape(line['map'])}</td>{cells}</tr>")
    buffer = io.BytesIO()
    turned.save(buffer, "PNG")
    return f"""<p>Under {certificate["group"]} ({escape(certificate["how"])}), {certificate["images"]} validation
images, {certificate["settings"]["nfe"]} evaluations a sample.</p>
<div class="scroll"><table><tr><th></th><th>precision</th><th>mean error</th><th>largest</th><th>Δx̂0</th>
<th>8-bit values changed</th></tr>{"".join(rows)}</table></div>
<p class="note">Error: ‖S(g x) − g S(x)‖ / ‖S(x)‖. Δx̂0: mean of |S(g x) − g S(x)| on [0, 1]. The noise turns with the
source. Below, for every element g, downwards: g x, S(g x), turned back, and ten times the difference from S(x).</p>
{embed(buffer.getvalue(), "outputs for turned inputs, turned back, and their difference", "pixels")}"""


def embed(data: bytes, text: str, kind: str = "") -> str:
    """An image tag that holds its PNG."""
    return f'<img class="{kind}" alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
