"""What translation gives: `python -m benchmarks.translation RUN [SUBJECT] [--flag value ...]`.

answers  mean of K samples for several K, and the estimate at T: scores of held-out patches, evaluations, time
seams    jumps across the borders of windows against jumps inside, on a flat, a periodic and a real picture
large    a picture of 4096²: time and peak memory, in a process of its own
folder   1,000 small files: images a second, killed halfway and continued
"""

import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
import torch
from skimage.data import immunohistochemistry
from torch import Tensor

from datasets import eval_batches
from datasets.writing import Form, write_image
from ddbm import load
from ddbm.model import BridgeModel
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, choose, from_flags, setting
from ddbm.translation.answers import Translator
from ddbm.translation.windows import axis
from evaluations import baselines
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts.common import aligned, find_checkpoint, header_of, open_split, run
from scripts.report.scores import linear_map

DRAWS = (1, 2, 4, 8, 16)
SHIFTS = 8  # of a picture under the grid of windows


@dataclass(frozen=True)
class BenchConfig(Settings):
    """The benchmark"""

    nfe: int = setting(20, "evaluations a sample", above=0)
    overlap: float = setting(0.5, "of windows", below=1)
    num_images: int = setting(64, "answers: held-out images", above=0)
    size: int = setting(4096, "large: side of the picture", above=0)
    files: int = setting(1000, "folder: files", above=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def answers(model: BridgeModel, path: Path, settings: BenchConfig) -> None:
    """A line for every number of draws; before them the source itself and the linear map of its pixels."""
    data = open_split(model.config.data, "test", like=header_of(path))
    batch = next(eval_batches(data, batch_size=min(settings.num_images, len(data))))
    source, truth = batch.source.numpy(), to_bytes(batch.target)
    rows = [["answer", "evaluations", "mse", "psnr", "ssim", "raw features", "s an image"]]

    def add(name: str, evaluations: int, images: np.ndarray, seconds: float) -> None:
        shown = images if images.dtype == np.uint8 else to_bytes(torch.from_numpy(images))
        found = evaluate(truth, shown, ["mse", "psnr", "ssim", "fid"], features="raw")["metrics"]
        values = [found[name]["mean"] for name in ("mse", "psnr", "ssim", "fd_raw")]
        cells = [format(value, form) for value, form in zip(values, (".4f", ".2f", ".3f", ".2f"), strict=True)]
        rows.append([name, str(evaluations), *cells, f"{seconds / len(source):.3f}"])

    if truth.shape == to_bytes(batch.source).shape:
        add("source itself", 0, to_bytes(batch.source), 0)
        add("linear map 7×7", 0, baselines.predict(linear_map(model.config), to_bytes(batch.source)), 0)
    once = Translator(model, answer="mean")
    begun = time.perf_counter()
    at_end = once(source).mean
    add("the estimate at T", once.nfe, at_end, time.perf_counter() - begun)
    many = Translator(model, answer="mean", draws=max(DRAWS), nfe=settings.nfe)
    total, begun = np.zeros_like(at_end), time.perf_counter()

    def keep(number: int, images: np.ndarray) -> None:
        total[...] += images
        if (count := number + 1) in DRAWS:
            name = "one sample" if count == 1 else f"mean of {count} samples"
            add(name, Translator(model, answer="mean", draws=count, nfe=settings.nfe).nfe, total / count, 0)
            rows[-1][-1] = f"{(time.perf_counter() - begun) / len(source):.3f}"

    many(source, keep=keep)
    print(aligned(rows))


def jumps(image: np.ndarray, borders: Sequence[int]) -> tuple[float, float, float, float]:
    """Mean and largest of |difference of neighbours| across the borders, and inside; image: [C, H, W], both axes."""
    across, inside = [], []
    for turned in (image, image.swapaxes(1, 2)):
        steps = np.abs(np.diff(turned, axis=2))
        chosen = np.isin(np.arange(1, turned.shape[2]), borders)
        across.append(steps[..., chosen].ravel())
        inside.append(steps[..., ~chosen].ravel())
    a, b = np.concatenate(across), np.concatenate(inside)
    return float(a.mean()), float(a.max()), float(b.mean()), float(b.max())


def seams(model: BridgeModel, path: Path, settings: BenchConfig) -> None:
    """Jumps for three pictures, by blended windows, by windows side by side, and by one window over the whole."""
    window, channels = model.images.height, model.images.source_channels
    side, space = 3 * window, 3 * window + SHIFTS
    real = torch.from_numpy(immunohistochemistry().astype(np.float32).transpose(2, 0, 1) / 127.5 - 1)
    real = real if channels == 3 else real.mean(0, keepdim=True).expand(channels, -1, -1)
    waves = torch.sin(torch.arange(space) * (2 * torch.pi / 7))
    pictures: dict[str, Tensor] = {
        "flat": torch.full((channels, space, space), 0.2),
        "periodic": (0.5 * waves[:, None] * waves).expand(channels, -1, -1),
        "real": real[:, :space, :space],
    }
    ways = {"blended": (settings.overlap, 0), "side by side": (0.0, 0), "one": (settings.overlap, side)}
    rows = [["picture", "windows", "answer", "mean across", "inside", "ratio", "largest across", "inside"]]
    for (name, picture), how in itertools.product(pictures.items(), ways):
        overlap, asked = ways[how]
        starts = axis(side, window, overlap).starts
        borders = sorted({*starts, *(start + window for start in starts)} - {0, side})
        for answer in ("mean", "sample"):
            translator = Translator(model, answer=answer, nfe=settings.nfe, window=asked, overlap=overlap)
            found = []
            for shift in range(SHIFTS):
                part = picture[None, :, shift : shift + side, shift : shift + side].contiguous().numpy()
                found.append(jumps(getattr(translator(part), answer)[0], borders))
            mean, largest, within, most = np.mean(found, 0)
            cells = [f"{mean:.4f}", f"{within:.4f}", f"{mean / within:.2f}", f"{largest:.3f}", f"{most:.3f}"]
            rows.append([name, how, answer, *cells])
    print(aligned(rows))


def large(model: BridgeModel, path: Path, settings: BenchConfig) -> None:
    """A tiled TIFF of that size, and one of a single window for what program and network take alone."""
    rows = [["side", "answer", "evaluations", "s", "peak of memory of its own, MiB", "with mapped files, MiB"]]
    with TemporaryDirectory() as folder:
        for side, answer, nfe in (
            (model.images.height, "both", 3),
            (settings.size, "mean", 1),
            (settings.size, "both", 3),
        ):
            source = Path(folder) / f"picture{side}.tif"
            tile = np.random.default_rng(0).integers(0, 256, (256, 256, model.images.source_channels)).astype(np.uint8)
            tiles = itertools.repeat(tile, (-(-side // 256)) ** 2)
            about = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
            tifffile.imwrite(source, tiles, shape=(side, side, tile.shape[-1]), dtype="uint8", **about)
            out = f"{folder}/{side}_{answer}"
            flags = ["--answer", answer, "--nfe", str(nfe), "--overlap", str(settings.overlap), "--out", out]
            begun = time.perf_counter()
            own, mapped = watched([*COMMAND, str(path), str(source), *flags])
            took = time.perf_counter() - begun
            rows.append(
                [str(side), answer, str(nfe + (answer == "both")), f"{took:.0f}", f"{own:.0f}", f"{mapped:.0f}"]
            )
    print(aligned(rows))


COMMAND = [sys.executable, "-m", "scripts.translate"]


def watched(command: Sequence[str]) -> tuple[float, float]:
    """Runs a command; the largest memory of its own and with mapped files that it had, MiB, by /proc (Linux)."""
    peaks = [0.0, 0.0]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = dict(re.findall(r"(RssAnon|VmRSS):\s+(\d+) kB", status))
                peaks = [
                    max(old, int(found.get(key, 0)) / 1024)
                    for old, key in zip(peaks, ("RssAnon", "VmRSS"), strict=True)
                ]
            time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed: run it alone to see why")
    return peaks[0], peaks[1]


def folder(model: BridgeModel, path: Path, settings: BenchConfig) -> None:
    """Small files of random pixels; the command is killed when half of them are there, and given again."""
    with TemporaryDirectory() as place:
        source, out = Path(place) / "in", Path(place) / "out"
        source.mkdir()
        form = Form("uint8", 0.0, 255.0, ".png" if model.images.source_channels in (1, 3) else ".tif")
        shape = (model.images.source_channels, model.images.height, model.images.width)
        for i in range(settings.files):
            write_image(
                source / f"{i:05}{form.ending}", np.random.default_rng(i).random(shape, np.float32) * 2 - 1, form
            )
        command = [*COMMAND, str(path), str(source), "--out", str(out), "--nfe", str(settings.nfe)]
        begun, killed = time.perf_counter(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and killed < settings.files // 2:
                killed = len(list(out.glob("*.png")))
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        again = time.perf_counter() - begun
        rate = (settings.files - killed) / again
        print(f"killed after {first:.1f} s with {killed} of {settings.files} there")
        print(f"again: {again:.1f} s, {rate:.1f} images/s")
        print(said.replace(str(out), "OUT"))


SUBJECTS: dict[str, Callable[[BridgeModel, Path, BenchConfig], None]] = {
    "answers": answers,
    "seams": seams,
    "large": large,
    "folder": folder,
}


def main(argv: Sequence[str]) -> int:
    text = {"run": "checkpoint, or run", "subject": f"one of {', '.join(SUBJECTS)}"}
    settings, extra = from_flags(BenchConfig, argv, text)
    path = find_checkpoint(extra.run)
    subject = choose(SUBJECTS, extra.subject, "subject")
    subject(load(path, device=pick_device(settings.device)), path, settings)
    return 0


if __name__ == "__main__":
    run(main)
