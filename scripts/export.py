"""A model as files that run without this package: `python -m scripts.export MODEL OUT` (docs/export.md).

Writes the denoiser D(x_t, t, x_T) by torch.export (.pt2) and as ONNX, in float32 and float16, and `sampler.json`, the
numbers of a sampler. Every file is loaded again and compared with the model; one that differs is a mistake, and then
nothing is written.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from ddbm.bridges.program import program
from ddbm.bridges.samplers import SAMPLERS, Plan, plan
from ddbm.files import stores
from ddbm.files.storage import whole_directory, write_whole
from ddbm.model import BridgeModel, load
from ddbm.networks.convolutions import GroupConv, SharedKernel, TiedConv2d
from ddbm.networks.layers import GroupNorm
from ddbm.settings import Settings, choose, from_flags, setting, unknown
from ddbm.symmetry.averaging import equivariance_error

from .common import TABLES, aligned, find_checkpoint, header_of, make_directory, run

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OURS = re.compile(r"denoiser(_fp16)?\.(pt2|onnx|onnx\.data)|sampler\.json")
INPUTS = ("x", "t", "source", "label")
SHARES = (0.0, 0.02, 0.3, 0.7, 0.98, 1.0)  # of [t_min, T]: where a file is compared with the model
BATCHES = (1, 3)  # images at once, then


@dataclass(frozen=True)
class ExportConfig(Settings):
    """What is written"""

    formats: tuple[str, ...] = setting(("pt2", "onnx"), "files of the denoiser, apart by commas: pt2, onnx")
    precision: tuple[str, ...] = setting(("fp32", "fp16"), "arithmetic of the network, a file each: fp32, fp16")
    weights: str = setting("ema", "which weights: ema, another average of the checkpoint (ema_RATE), or model")
    sampler: str = setting("dbim", "sampler of sampler.json")
    nfe: int = setting(20, "its network evaluations an image, at most", above=0)
    grid: str = setting("", "times of its steps; empty: its own")
    churn: float = setting(0.33, "heun, ecsi: how random")
    guidance: float = setting(1.0, "heun, euler_maruyama: weight of the pull towards the source", signed=True)
    order: int = setting(0, "dbim: 1, 2 or 3; dbmsolver: 1 or 2; 0: 2, or 1 with eta")
    eta: float = setting(0.0, "dbim of order 1: 0 deterministic after the first step, 1 stochastic")
    tolerance: float = setting(1e-4, "largest relative error of float32 files that passes", above=0)
    tolerance_fp16: float = setting(1e-2, "the same of float16 files", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("formats", ("pt2", "onnx")), ("precision", tuple(PRECISIONS))):
            given = getattr(self, name)
            for word in given:
                if word not in known:
                    raise unknown(name, word, known)
            if not given:
                raise ValueError(f"--{name} is empty: known are {', '.join(known)}")

    def allowed(self, precision: str) -> tuple[str, float]:
        """Name and value of the tolerance of files of that precision."""
        name = "tolerance" if precision == "fp32" else f"tolerance_{precision}"
        return name, getattr(self, name)


class Exported(nn.Module):
    """D(x_t, t, x_T), clipped to [-1, 1], as files hold it: kernels laid out, the network in a type of its own.

    x `[B, C, H, W]` and source `[B, C', H, W]` float32; t float64 `[B]`, as near T the scalings depend on digits of
    T - t that float32 does not have; label int64 `[B]` where the model has classes.
    """

    def __init__(self, model: BridgeModel, kind: torch.dtype) -> None:
        super().__init__()
        self.bridge, self.condition, self.kind = model.bridge, model.condition, kind
        self.network = with_ordinary(copy.deepcopy(model.network)).eval()
        for module in self.network.modules():
            if not isinstance(module, GroupNorm):  # which is float32 in every precision
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(kind)

    def forward(self, x: Tensor, t: Tensor, source: Tensor, label: Tensor | None = None) -> Tensor:
        def network(scaled: Tensor, c_noise: Tensor) -> Tensor:
            return self.network(scaled.to(self.kind), c_noise, self.condition(source.to(self.kind)), label)

        return self.bridge.denoise(network, x, t).clamp(-1, 1)


def with_ordinary(network: nn.Module) -> nn.Module:
    """The network itself, with an ordinary layer in the place of every one whose kernel is computed from its weight."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, SharedKernel):
                setattr(parent, name, ordinary(layer))
    return network


@torch.no_grad()
def ordinary(layer: SharedKernel) -> nn.Module:
    """The same map by PyTorch's layer, its kernel laid out."""
    kernel, bias = layer.laid_out(), layer.bias
    assert isinstance(bias, Tensor)
    has_bias = isinstance(bias, nn.Parameter)  # else it is zeros
    if isinstance(layer, GroupConv):
        bias = bias.repeat_interleave(layer.repeat)
    elif isinstance(layer, TiedConv2d) and kernel.ndim == 3:  # the free values of a wide layer, [orbits, out, in]
        kernel = kernel.permute(1, 2, 0).index_select(2, layer.orbit).view_as(layer.weight)
    out, into, *sizes = kernel.shape
    own: nn.Linear | nn.Conv2d = (
        nn.Conv2d(into, out, sizes[0], padding=sizes[0] // 2, bias=has_bias)
        if sizes
        else nn.Linear(into, out, bias=has_bias)
    )
    own.weight.copy_(kernel)
    if own.bias is not None:
        own.bias.copy_(bias)
    return own


def arguments(model: BridgeModel, t: Tensor) -> tuple[Tensor, ...]:
    """What the denoiser takes: states of random pairs at the times `[B]`, these, sources, and labels, if any."""
    images, draw = model.images, torch.Generator().manual_seed(0)
    target, source = (
        torch.rand(len(t), channels, images.height, images.width, generator=draw) * 2 - 1
        for channels in (images.target_channels, images.source_channels)
    )
    x = model.bridge.state(target, model.endpoint(source), t, torch.randn(target.shape, generator=draw))
    label = [torch.randint(images.num_classes, (len(t),), generator=draw)] if images.num_classes else []
    return x, t, source, *label


def times(model: BridgeModel) -> Tensor:
    """Those at which files are compared with the model, with both ends to the last bit."""
    share = torch.tensor(SHARES, dtype=torch.float64)
    return (1 - share) * model.bridge.t_min + share * model.bridge.T


class Spelled(TorchFunctionMode):
    """Two operations of the network in simpler ones: PyTorch 2.6 writes them for one number of images alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.addcmul:
            return args[0] + args[1] * args[2]
        if func is F.interpolate:  # by `upsample` alone
            return args[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return func(*args, **(kwargs or {}))


def exported(model: BridgeModel, precision: str) -> ExportedProgram:
    """The denoiser as a graph, for any number of images."""
    module, given = Exported(model, PRECISIONS[precision]).eval(), arguments(model, times(model)[:5])
    batch = Dim("batch", min=1, max=2**31 - 1)
    with torch.no_grad(), Spelled():
        graph = torch.export.export(module, given, dynamic_shapes=({0: batch},) * len(given), strict=False)
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of this machine
    return graph


def save(graph: ExportedProgram, path: Path, count: int) -> None:
    """Writes a graph of `count` inputs as its name says; ONNX above 1.6 GB with a file of weights beside it."""
    if path.suffix == ".pt2":
        torch.export.save(graph, path)
        return
    onnx = torch.onnx.export(
        graph, dynamo=True, optimize=True, verbose=False, input_names=INPUTS[:count], output_names=["estimate"]
    )
    assert onnx is not None
    for node in onnx.model.graph:
        node.metadata_props.clear()  # where in the graph it was: half the file of a small network
    onnx.save(path)


def opened(path: Path) -> Callable[..., Tensor]:
    """The denoiser that a file holds."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def denoise(*given: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(INPUTS, (x.numpy() for x in given), strict=False)))[0])

    return denoise


class Errors(NamedTuple):
    """Of a file: |difference| from the model's D, largest; ‖difference‖ / ‖D‖ of an image, largest; and
    ‖D(g x) - g D(x)‖ / ‖D(x)‖ under the model's group, largest, or None without one."""

    difference: float
    relative: float
    equivariance: float | None


@torch.inference_mode()
def compare(denoise: Callable[..., Tensor], model: BridgeModel) -> Errors:
    """The errors of what a file holds, in batches of 1 and of 3, at both ends of the bridge and between."""
    given = arguments(model, times(model))
    x, t, source, *label = given
    wanted = model.denoiser(source, *label)(x, t).clamp(-1, 1)
    worst = torch.zeros(2)
    for size in BATCHES:
        batches = zip(*(part.split(size) for part in given), strict=True)
        error = torch.cat([denoise(*batch) for batch in batches]) - wanted
        sizes = error.flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1).clamp(min=1e-30)
        worst = torch.maximum(worst, torch.stack([error.abs().amax(), sizes.amax()]))  # NaN stays
    difference, relative = worst.tolist()
    if len(model.group) == 1:
        return Errors(difference, relative, None)

    x, t, source, *label = (part[::2] for part in given)

    def turned(both: Tensor) -> Tensor:
        x, source = both.split([model.images.target_channels, model.images.source_channels], 1)
        return denoise(x, t, source, *label)

    found = equivariance_error(turned, torch.cat([x, source], 1), model.group)
    return Errors(difference, relative, torch.stack(list(found.values())).amax().item())


def judge(name: str, errors: Errors, symmetric: bool, tolerance: tuple[str, float]) -> None:
    """Raises ValueError for a file that is not the model, or has lost the symmetry of the model's layers."""
    flag, largest = tolerance
    complaints = [("differs from the model by", errors.relative)]
    if symmetric and errors.equivariance is not None:
        complaints.append(("is not equivariant, with an error of", errors.equivariance))
    for complaint, error in complaints:
        if not error <= largest:  # NaN fails too
            raise ValueError(f"{name} {complaint} {error:.1e}, more than --{flag} {largest:g}: nothing is written")


def planned(model: BridgeModel, settings: ExportConfig) -> Plan:
    """The sampler that the settings describe. Raises ValueError for what does not fit."""
    own = choose(SAMPLERS, settings.sampler, "sampler").settings
    others = {name for sampler in SAMPLERS.values() for name in sampler.settings}.difference(own)
    for f in fields(settings):
        if f.name in others and getattr(settings, f.name) != f.default:
            raise ValueError(f"--{f.name} means nothing to sampler {settings.sampler}: leave it out")
    used = {name: getattr(settings, name) for name in own if hasattr(settings, name)}
    return plan(settings.sampler, model.bridge, settings.nfe, settings.grid, **used)


def refuse(out: Path, formats: Sequence[str]) -> None:
    """Raises ValueError for a folder with other files than an export's, and where ONNX cannot be written."""
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder")
    if out.is_dir() and (others := sorted(p.name for p in out.iterdir() if not OURS.fullmatch(p.name))):
        raise ValueError(f"{out} holds other files ({others[0]}), and an export replaces the folder: name another")
    if "onnx" in formats and (missing := [name for name in NEEDED if find_spec(name) is None]):
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install -e '.[export]', or write --formats pt2 alone")


def main(argv: Sequence[str]) -> int:
    positional = {"model": "checkpoint, or run", "out": "folder to write; of an earlier export it is replaced"}
    settings, extra = from_flags(ExportConfig, argv, positional, tables=TABLES)
    mirror = stores.Mirror(extra.out)
    refuse(mirror.path, settings.formats)
    path = find_checkpoint(extra.model)
    if header_of(path).codec:
        raise ValueError(
            f"{path} is a bridge between latents, and an export has no codec: export one between pixels, or sample and "
            "translate with this package"
        )
    model = load(path, settings.weights)
    ready = planned(model, settings)
    table = program(ready)
    images, symmetric = model.images, model.config.model.layers != "plain"
    checks: dict[str, Errors] = {}
    sizes: dict[str, int] = {}
    with whole_directory(make_directory(mirror.path.parent) / mirror.path.name) as folder:
        for precision in settings.precision:
            graph = exported(model, precision)
            for suffix in settings.formats:
                name = f"denoiser{'' if precision == 'fp32' else f'_{precision}'}.{suffix}"
                save(graph, folder / name, 3 + bool(images.num_classes))
                checks[name] = compare(opened(folder / name), model)
                judge(name, checks[name], symmetric, settings.allowed(precision))
                sizes[name] = (folder / name).stat().st_size
        content: dict[str, Any] = {
            "checkpoint": path.name, "weights": settings.weights, "images": asdict(images),
            "classes": header_of(path).classes, "bridge": asdict(model.config.bridge), "sampler": ready.sampler,
            "settings": ready.settings, "grid": ready.times.tolist(),
            "files": {name: errors._asdict() for name, errors in checks.items()}, **table._asdict(),
        }  # fmt: skip
        write_whole(folder / "sampler.json", json.dumps(content).encode())
    mirror.send()

    print(f"{path.name}, {ready.sampler}: {len(table.times)} evaluations and {table.draws} noises an image")
    heads = ["file", "MB", "largest difference", "relative", f"equivariance ({model.group.name})"]
    lines = [
        [name, f"{sizes[name] / 1e6:.1f}", *("–" if e is None else f"{e:.1e}" for e in errors)]
        for name, errors in checks.items()
    ]  # fmt: skip
    print(aligned([heads, *lines]))
    print("difference: from the model's own D, clipped to [-1, 1]; equivariance: ‖D(g x) - g D(x)‖ / ‖D(x)‖")
    print(mirror.place)
    return 0


if __name__ == "__main__":
    run(main)
