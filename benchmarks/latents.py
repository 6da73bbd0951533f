"""What latents give: `python -m benchmarks.latents [SUBJECT] [--flag value ...]`.

answers       a bridge between latents and one between pixels on test images: scores, time and memory of one image; what
              the codec alone makes of targets and sources; seconds of a training step of all three
equivariance  errors under D4 of encoder, bridge, decoder and whole map, and of the latter made symmetric, with codecs
              trained for a few steps: our own by kinds of layers, and a small random AutoencoderKL, as it is and tuned
tiles         a picture of 512² decoded whole, in blended tiles and in tiles side by side: jumps across borders of tiles

A picture of 2048²: `python -m benchmarks.translation RUN large --size 2048`.
"""

import io
import itertools
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import Augmentation, eval_batches, open_data, train_batches
from datasets.retina import pictures
from ddbm import load, sample, translate
from ddbm.certificate import PARTS
from ddbm.config import CodecHeader
from ddbm.files import checkpoint
from ddbm.model import BridgeModel
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, choose, from_dict, from_flags, setting
from ddbm.symmetry.groups import GROUPS
from ddbm.training.trainer import Trainer
from ddbm.translation import tiles as in_tiles
from evaluations.evaluator import evaluate
from evaluations.images import to_bytes
from scripts import check_equivariance, train, train_codec
from scripts.common import aligned, find_checkpoint, header_of, open_split, run
from scripts.import_checkpoint import preset_flags
from scripts.training import Program

from .cost import Work, interleaved
from .study import tiles
from .translation import jumps, watched

DRAWS, ROUNDS = 4, 5  # of the mean; of what is timed
SCORES = {"mse": ".5f", "psnr": ".2f", "ssim": ".3f"}
SIDE = 512  # of the picture in tiles
GROUP = "D4"  # of errors and bridges
SYMMETRIZE = ("none", "average", "canonical")
TINY = dict(  # of the AutoencoderKL: factor 4
    block_out_channels=(16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
    up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
)  # fmt: skip
CODECS = {  # flags of its training, of the bridge's
    "own, plain": ("--layers plain --group none", "--layers plain --group none"),
    "own, tied": ("--layers tied", ""),
    "own, regular": ("--layers regular", "--layers regular"),
    "AutoencoderKL, random": (None, ""),
    "AutoencoderKL, tuned": ("--from_kl {out}/kl --equivariance_weight 1 --equivariance_group D4", ""),
}
CODEC = "--dataset histology --image_size 32 --batch_size 16 --optimizer adam --lr 1e-3"
OWN = "--factor 4 --model_channels 16 --num_res_blocks 1"
BRIDGE = "--model_channels 16 --channel_mult 1,2 --num_head_channels 16 --attention_resolutions 4"


@dataclass(frozen=True)
class LatentsConfig(Settings):
    """The benchmark"""

    run: str = setting("workdir/retina_latent_vp", "answers, tiles: run or checkpoint of a bridge between latents")
    pixels: str = setting("workdir/retina_vp", "answers: the same between pixels; empty: none")
    steps: int = setting(100, "equivariance: steps of codec and bridge", above=0)
    nfe: int = setting(20, "answers: evaluations a sample", above=0)
    out: str = setting("workdir/latents", "equivariance: directory of its runs")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def codec_header(place: str) -> CodecHeader:
    """What the checkpoint of a codec of our own says of itself."""
    return from_dict(CodecHeader, checkpoint.read_header(find_checkpoint(place), "codec"), place)


def stepping(program: Program, header: Any, device: torch.device) -> Work:
    """A training step as the program makes it, on a batch of its data."""
    config = header.config
    data = open_data(split="train", **asdict(config.data))
    built = program.build(config, Namespace(from_kl="", to_kl=""), data, data, device)
    trainer, settings = Trainer(built.config, built.model, built.objective, device), config.train
    augmentation = Augmentation.of(settings, config.data)
    batch = next(train_batches(data, batch_size=settings.batch_size, seed=0, augmentation=augmentation))
    return lambda: trainer.train_step(batch).item()


def scores(truth: Tensor, images: Tensor) -> list[str]:
    """Cells: scores of images, and the distance of their features by squares of both."""
    known, found = to_bytes(truth), to_bytes(images)
    metrics = evaluate(known, found, [*SCORES])["metrics"]
    apart = evaluate(tiles(known), tiles(found), ["fid"], features="raw")["metrics"]["fd_raw"]["mean"]
    return [*(format(metrics[name]["mean"], form) for name, form in SCORES.items()), format(apart, ".3f")]


def answers(settings: LatentsConfig, device: torch.device) -> None:
    places = {"latents": settings.run} | ({"pixels": settings.pixels} if settings.pixels else {})
    models = {name: load(find_checkpoint(place), device=device) for name, place in places.items()}
    latents = models["latents"]
    data = open_split(latents.config.data, "test", like=header_of(find_checkpoint(settings.run)))
    batch = next(eval_batches(data, batch_size=len(data))).to(device)
    target, source = batch.target, batch.source
    answer: dict[str, Callable[[BridgeModel, Tensor], Tensor]] = {
        "mean answer, the estimate at T": lambda model, x: translate(model, x, answer="mean").mean,
        "one sample": lambda model, x: sample(model, x, nfe=settings.nfe).x_0,
        f"mean of {DRAWS} samples": lambda model, x: torch.stack(
            [sample(model, x, nfe=settings.nfe, seed=seed).x_0 for seed in range(DRAWS)]
        ).mean(0),
    }
    asked = list(itertools.product(models, answer))
    works = {key: partial(answer[key[1]], models[key[0]], source[:1]) for key in asked}
    times = interleaved(works, ROUNDS)
    rows = [["test images", *SCORES, "raw features", "s an image"]]
    rows.append(["source itself", *scores(target, source), "–"])
    with torch.inference_mode():
        for side, images in (("target", target), ("source", source)):
            rows.append([f"{side}, encoded and decoded", *scores(target, latents.decode(latents.encode(images))), "–"])
    for name, what in asked:
        shown = answer[what](models[name], source).to(device)
        rows.append([f"{name}: {what}", *scores(target, shown), f"{times[name, what].min():.3f}"])
    print(aligned(rows), end="\n\n")

    codec = latents.config.model.codec
    programs: dict[str, tuple[Program, Any]] = {"codec": (train_codec.CODEC, codec_header(codec))}
    programs |= {name: (train.BRIDGE, header_of(find_checkpoint(place))) for name, place in places.items()}
    steps = interleaved({name: stepping(*given, device) for name, given in programs.items()}, ROUNDS)
    rows = [["training", "steps", "s a step", "together, s", "one image: peak memory, MiB"]]
    for name, (_, header) in programs.items():
        least = float(steps[name].min())
        memory = f"{peak(places[name], source[0]):.0f}" if name in places else "–"
        rows.append([name, str(header.step), f"{least:.3f}", f"{least * header.step:.0f}", memory])
    print(aligned(rows))
    print(f"{torch.get_num_threads()} threads; times: the least of {ROUNDS} in turns")


def peak(place: str, image: Tensor) -> float:
    """MiB of its own that a process holds which translates an image."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/image.png"
        Image.fromarray(to_bytes(image[None])[0]).save(path)
        command = ["-m", "scripts.translate", place, path, "--answer", "both", "--out", f"{folder}/out"]
        return watched([sys.executable, *command])[0]


def quietly(main: Callable[[Sequence[str]], int], words: str, *more: str) -> int:
    with redirect_stdout(io.StringIO()):
        return main([*words.split(), *more])


def equivariance(settings: LatentsConfig, device: torch.device) -> None:
    """Trains what is not there yet; errors are the largest over images and elements."""
    out, nfe = Path(settings.out), 3 * len(GROUPS[GROUP])  # of the dearest sampler, averaged
    common = f"--total_steps {settings.steps} --ema_rate 0.99 --tensorboard false --device {settings.device}"
    if not (out / "kl").exists():
        kind = train_codec.kl.autoencoder_class()
        torch.manual_seed(0)
        kind(**TINY).save_pretrained(out / "kl")
    rows = [["codec", "encoder", "bridge", "decoder", *(f"whole map, {how}" for how in SYMMETRIZE)]]
    for name, (trained, flags) in CODECS.items():
        place = str(out / name.replace(", ", "_")) if trained else str(out / "kl")
        if trained:
            own = "" if "--from_kl" in trained else OWN
            quietly(train_codec.main, f"{CODEC} {own} {trained.format(out=out)} {common}", "--run_dir", place)
        given = [*preset_flags("histology_vp"), *BRIDGE.split(), "--group", GROUP, *flags.split(), "--codec", place]
        made = f"{out / name.replace(', ', '_')}_bridge"
        quietly(train.main, "", *given, *common.split(), "--run_dir", made)
        found = {}
        for how in SYMMETRIZE:
            words = (
                f"--group {GROUP} --symmetrize {how} --nfe {nfe} --num_images 2 --device {settings.device} --out_dir"
            )
            quietly(check_equivariance.main, "", made, *words.split(), made)
            file = Path(made, f"equivariance_{GROUP}" + (f"_{how}" if how != "none" else "") + ".json")
            found[how] = {line["map"]: line["largest"] for line in json.loads(file.read_text())["summary"]}
        parts = [found["none"][part] for part in ("encoder", "denoiser", "decoder")]
        whole = [max(error for what, error in found[how].items() if what not in PARTS) for how in SYMMETRIZE]
        rows.append([name, *(f"{error:.0e}" for error in (*parts, *whole))])
    print(aligned(rows))


@torch.inference_mode()
def tiled(settings: LatentsConfig, device: torch.device) -> None:
    """Borders are those of all tiles, wherever a tile begins or ends."""
    model = load(find_checkpoint(settings.run), device=device)
    cell, side = model.codec.factor, in_tiles.SIDE
    middle = slice((len(pictures()[0]) - SIDE) // 2, (len(pictures()[0]) + SIDE) // 2)
    picture = pictures()[0][middle, middle].transpose(2, 0, 1) / 127.5 - 1
    z = model.encode(torch.from_numpy(picture.astype(np.float32))[None].to(device))
    parts = [[model.decode(part) for part in row.split(side, 3)] for row in z.split(side, 2)]
    ways = {
        "whole": model.decode(z).cpu().numpy(),
        "blended tiles": in_tiles.decoded(model, z.cpu().numpy()),
        "tiles side by side": torch.cat([torch.cat(row, 3) for row in parts], 2).cpu().numpy(),
    }
    starts = in_tiles.axis(z.shape[3], side, in_tiles.OVERLAP).starts
    borders = sorted({cell * edge for start in starts for edge in (start, start + side)} - {0, SIDE})
    heads = ["mean across", "inside", "ratio", "largest across", "inside", "largest difference from whole"]
    rows = [[f"{SIDE}², tiles of {side * cell}²", *heads]]
    for name, images in ways.items():
        mean, largest, within, most = jumps(images[0], borders)
        apart = np.abs(images - ways["whole"]).max()
        cells = [
            f"{mean:.4f}",
            f"{within:.4f}",
            f"{mean / within:.3f}",
            f"{largest:.3f}",
            f"{most:.3f}",
            f"{apart:.1e}",
        ]
        rows.append([name, *cells])
    print(aligned(rows))


SUBJECTS = {"answers": answers, "equivariance": equivariance, "tiles": tiled}


def main(argv: Sequence[str]) -> int:
    argv = argv if argv and not argv[0].startswith("--") else ["answers", *argv]
    settings, extra = from_flags(LatentsConfig, argv, {"subject": f"one of {', '.join(SUBJECTS)}"})
    choose(SUBJECTS, extra.subject, "subject")(settings, pick_device(settings.device))
    return 0


if __name__ == "__main__":
    run(main)
