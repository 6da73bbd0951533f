"""On which times does a training spend its steps? `python -m benchmarks.times RUN [--flag value ...]`.

Draws times as the run does, for its validation images, and prints a table of times in bins, evenly on a logarithmic
scale: the share of all steps, the mean loss of the averaged network, and the bin's share of all losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import eval_batches
from ddbm import load
from ddbm.model import BridgeModel
from ddbm.networks.convolutions import folded
from ddbm.ranks.distributed import pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.pairs import Batch
from ddbm.training.objectives import Denoising, Draw
from ddbm.training.times import draw_times
from scripts.common import aligned, find_checkpoint, open_split, run


@dataclass(frozen=True)
class TimesConfig(Settings):
    """The benchmark"""

    draws: int = setting(64, "times of every image", above=0)
    bins: int = setting(10, "bins of times", above=0)
    num_images: int = setting(64, "validation images", above=0)
    seed: int = setting(0, "seed of the noise")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


@torch.inference_mode()
def losses(model: BridgeModel, batch: Batch, draws: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Times of training, `draws` of every image, evenly by their law, and their losses; float64 `[draws, B]`."""
    u = (torch.arange(draws * len(batch.target), dtype=torch.float64) + 0.5) / (draws * len(batch.target))
    times = draw_times(model.config.train, model.bridge, u).view(draws, -1)  # from early to late, every image at all
    generator, found = torch.Generator().manual_seed(seed), []
    with folded(model.network):
        for t in tqdm(times, desc="losses", leave=False, disable=None):
            noise = torch.randn(batch.target.shape, generator=generator).to(batch.target)
            draw = Draw(batch.target, batch.source, batch.mask, batch.label, t.to(noise.device), noise)
            found.append(Denoising()(model, model.network, {}, draw).double().cpu())
    return times, torch.stack(found)


def table(t: Tensor, loss: Tensor, edges: Tensor) -> list[list[str]]:
    """A line for every bin [edge, next edge), the last with its end."""
    t, loss = t.flatten(), loss.flatten()
    which = torch.bucketize(t, edges[1:-1], right=True)
    lines = [["t from", "to", "steps", "mean loss", "share of losses"]]
    for i, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        own = loss[which == i]
        mean = f"{own.mean().item():.4g}" if len(own) else "–"
        steps, share = len(own) / len(loss), (own.sum() / loss.sum()).item()
        lines.append([f"{low:.3g}", f"{high:.3g}", f"{100 * steps:.1f} %", mean, f"{100 * share:.1f} %"])
    return lines


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(TimesConfig, argv, {"run": "run, or checkpoint"})
    model = load(find_checkpoint(extra.run), device=(device := pick_device(settings.device)))
    data = open_split(model.config.data, "val")
    batch = next(eval_batches(data, batch_size=min(settings.num_images, len(data)))).to(device)
    ends = torch.tensor([model.bridge.t_min, model.bridge.T], dtype=torch.float64).log()
    edges = torch.linspace(0, 1, settings.bins + 1, dtype=torch.float64).mul(ends[1] - ends[0]).add(ends[0]).exp()
    print(f"{model.config.train.time_sampling} times of {model.config.bridge.schedule}; loss of the averaged network")
    print(aligned(table(*losses(model, batch, settings.draws, settings.seed), edges)))
    return 0


if __name__ == "__main__":
    run(main)
