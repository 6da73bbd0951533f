"""The way from a source to its sample, for people: a strip of pictures and an animated GIF.

The noise in a state x_t = a x_T + b x_0 + c z is far stronger than the image under VE (c is up to sigma_max / 2), so a
state is shown divided by sqrt(1 + c² / sigma_data²): with noise as strong as the image at most, and as it is at both
ends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ddbm.bridges.bridge import Bridge, scale
from ddbm.files.storage import write_whole
from ddbm.model import Trajectory

from .common import to_bytes
from .pictures import evenly, sheet

SHOWN = 8  # states in a strip
FRAMES = 60  # states in a GIF, at most
MILLISECONDS = 80, 2000  # a frame, the last frame


def draw_trajectory(
    out: Path, name: str, bridge: Bridge, trajectory: Trajectory, source: Tensor, sample: Tensor, target: Tensor
) -> None:
    """Writes `trajectory_NAME.png` and `.gif` of one image; tensors `[1, C, H, W]`, trajectory `[S, 1, C, H, W]`."""
    states, estimates = pictures_of(bridge, trajectory)
    ends = [to_bytes(image)[0] for image in (source, sample, target)]
    times = [f"t = {t:.3g}" for t in trajectory.t.tolist()]
    picture = strip(states, estimates, times, ends)
    write_whole(out / f"trajectory_{name}.png", lambda file: picture.save(file, "PNG"))
    first, *others = frames(states, estimates, times, ends)
    durations = [MILLISECONDS[0]] * len(others) + [MILLISECONDS[1]]
    write_whole(
        out / f"trajectory_{name}.gif",
        lambda file: first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0),
    )


def pictures_of(bridge: Bridge, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """States and estimates of the first image as they are shown, uint8 `[S, H, W, C]`."""
    c = bridge.coefficients(trajectory.t.cpu()).c
    shown = scale((1 + c**2 / bridge.variance).rsqrt(), trajectory.x[:, 0])
    return to_bytes(shown), to_bytes(trajectory.D[:, 0])


def strip(states: np.ndarray, estimates: np.ndarray, times: list[str], ends: list[np.ndarray]) -> Image.Image:
    """source | states above the estimates of x_0 made from them | sample | target."""
    source, sample, target = ends
    steps = evenly(len(states), SHOWN)
    columns = [[source, None], *([states[i], estimates[i]] for i in steps), [sample, None], [target, None]]
    return sheet(columns, ["source", *(times[i] for i in steps), "sample", "target"], ["x_t", "estimate"])


def frames(states: np.ndarray, estimates: np.ndarray, times: list[str], ends: list[np.ndarray]) -> list[Image.Image]:
    """source | state | estimate | target, state after state; the sample last, in the place of both."""
    source, sample, target = ends
    steps = evenly(len(states), FRAMES)
    shown = [
        sheet([[source], [states[i]], [estimates[i]], [target]], ["source", times[i], "estimate", "target"])
        for i in steps
    ]
    return [*shown, sheet([[source], [sample], [sample], [target]], ["source", "sample", "sample", "target"])]
