"""Power function moving averages, and the average of any width after training (Karras et al. 2024, EDM2, section 3).

    RUN/ema/step_00001000.safetensors    tensors `SIGMA_REL/PARAMETER` of every tracked profile, mostly in float16;
                                         format, step, sigma_rels and SHA-256 in the header

A profile is known by its width `sigma_rel`: its standard deviation as a share of the time trained (docs/maths.md).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import storage

FORMAT = "ddbm-ema-1"
NAME = re.compile(r"step_(\d{8})\.safetensors")
ROUNDING = 2**-11 / math.sqrt(3)  # of float16: root mean square of the relative error, at most


class EMA:
    """Averages `weights`, in place: w ← w + (1 - rate) (theta - w) after every `every`-th step.

    rate: number of the step, from 1 -> how much of the old average stays over `every` steps.
    """

    def __init__(self, weights: dict[str, Tensor], rate: Callable[[int], float], every: int = 1) -> None:
        self.weights, self.rate, self.every = weights, rate, every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        if step % self.every == 0:
            theirs = [p.detach() for p in network.parameters()]
            torch._foreach_lerp_(list(self.weights.values()), theirs, 1 - self.rate(step))


def warmed_up(rate: float, every: int = 1) -> Callable[[int], float]:
    """A fixed rate, at the beginning at most step / (step + 9), so that the first weights are soon forgotten."""
    return lambda step: min(rate, step / (step + 9)) ** every


WIDEST, NARROWEST = 12**-0.5, 1e-4  # the widest is the plain mean, gamma = 0


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a width, sigma_rel² = (gamma + 1) / ((gamma + 3) (gamma + 2)²), Eq. 123.

    The largest root of the cubic in Eq. 126, in closed form: u³ - (s + 1/3) u + (4/3 s + 2/27) = 0, u = gamma + 7/3 and
    s = sigma_rel^-2.
    """
    if not NARROWEST <= sigma_rel < WIDEST:  # NaN fails too
        raise ValueError(
            f"sigma_rel {sigma_rel} is no width of a power function profile: expected at least {NARROWEST} and below "
            f"{WIDEST:.4f}, such as 0.05 or 0.1"
        )
    s = sigma_rel**-2
    p, q = s + 1 / 3, 4 / 3 * s + 2 / 27
    return 2 * math.sqrt(p / 3) * math.cos(math.acos(-1.5 * q / p * math.sqrt(3 / p)) / 3) - 7 / 3


def power_rate(sigma_rel: float, step: int, every: int = 1) -> float:
    """beta of the update after `step` steps, `every` steps after the one before (Eq. 127); 0 at the first."""
    assert step > 0 and every > 0
    return max(0.0, 1 - every / step) ** (gamma_of(sigma_rel) + 1)


def inner_products(t: np.ndarray, gamma: np.ndarray, u: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """∫ p_(gamma, t)(τ) p_(delta, u)(τ) dτ of n profiles with m others (Eq. 151); float64 `[n, m]`."""
    t, gamma = t[:, None], gamma[:, None]
    early, late = np.minimum(t, u), np.maximum(t, u)
    decay = np.exp(np.where(t < u, delta, gamma) * np.log(early / late))
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * decay / late


def project(t: np.ndarray, gamma: np.ndarray, u: float, delta: float) -> tuple[np.ndarray, float]:
    """Profiles (t, gamma) combined to come close to (u, delta) in L2 (Algorithm 3).

    Returns the coefficients x and the distance that remains, relative to the norm of (u, delta). Of all x with sum 1
    they make distance² + ROUNDING² |x|² smallest, so that the snapshots' rounding is not blown up where profiles almost
    coincide. Solved for y = x / scale, the coefficients of profiles of norm 1, whose products are cosines.
    """
    U, D = np.array([u], np.float64), np.array([delta], np.float64)
    A, b = inner_products(t, gamma, t, gamma), inner_products(t, gamma, U, D)[:, 0]
    norms, norm = np.sqrt(np.diag(A)), math.sqrt(inner_products(U, D, U, D)[0, 0])
    cosines, b, scale = A / np.outer(norms, norms), b / norms / norm, norm / norms
    free, along = np.linalg.solve(cosines + np.diag((ROUNDING * scale) ** 2), np.stack([b, scale], 1)).T
    y = free + along * (1 - scale @ free) / (scale @ along)
    return y * scale, math.sqrt(max(0.0, 1 - 2 * y @ b + y @ cosines @ y))


def snapshots(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, path) of the snapshots of a run, oldest first."""
    found = ((NAME.fullmatch(p.name), p) for p in (run_dir / "ema").glob("*"))
    return sorted((int(match[1]), p) for match, p in found if match)


def write_snapshot(run_dir: Path, step: int, profiles: Mapping[float, Mapping[str, Tensor]]) -> Path:
    """Writes the averages of every sigma_rel after `step` steps, whole or not at all.

    In float16, or float32 for a tensor with values beyond it.
    """
    final, tensors = run_dir / "ema" / f"step_{step:08d}.safetensors", {}
    for sigma_rel, weights in profiles.items():
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise ValueError(f"the moving average of {name} is no longer finite: lower --lr")
            half = weight.half()
            tensors[f"{float(sigma_rel)!r}/{name}"] = (half if half.isfinite().all() else weight.float()).contiguous()
    digest = hashlib.sha256()
    for key in sorted(tensors):
        _digest(digest, key, tensors[key])
    header = {"format": FORMAT, "step": str(step), "sigma_rels": json.dumps([float(s) for s in profiles])}
    final.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(final, safetensors.torch.save(tensors, header | {"sha256": digest.hexdigest()}))
    return final


def outdated(names: Iterable[str], step: int) -> list[str]:
    """Of a run's files the snapshots that it writes again from `step` on, and the hidden one that a kill left."""
    found = ((re.fullmatch(r"ema/(\.?)step_(\d{8})\..*", name), name) for name in names)
    return [name for match, name in found if match and (match[1] or int(match[2]) > step)]


def reconstruct(run_dir: Path, step: int, sigma_rel: float) -> tuple[dict[str, Tensor], float, list[int]]:
    """The average of width `sigma_rel` after `step` steps, combined from every snapshot up to that step.

    Float32 by parameter; also what `project` could not reach, and the steps of the snapshots. Raises ValueError where
    there are none, or a damaged one.
    """
    gamma = gamma_of(sigma_rel)
    stored = snapshots(run_dir)
    if not stored:
        raise ValueError(
            f"{run_dir} has no snapshots of moving averages (ema/step_NNNNNNNN.safetensors): give the directory of a "
            "run that has trained for --total_steps / --ema_snapshots steps or more"
        )
    if not stored[0][0] <= step <= stored[-1][0]:
        raise ValueError(f"step {step} is outside the snapshots of {run_dir}, {stored[0][0]} to {stored[-1][0]}")
    used = [(found, path) for found, path in stored if found <= step]
    profiles = [(found, width) for found, path in used for width in _widths(path, found)]
    times, gammas = np.array([(found, gamma_of(width)) for found, width in profiles], np.float64).T
    coefficients, residual = project(times, gammas, step, gamma)
    shares, sums = dict(zip(profiles, coefficients.tolist(), strict=True)), dict[str, Tensor]()
    for found, path in used:
        _add(sums, path, {width: share for (of, width), share in shares.items() if of == found})
    return {k: sums.pop(k).float() for k in list(sums)}, residual, [found for found, _ in used]


def _widths(path: Path, step: int) -> list[float]:
    """The widths in a snapshot, from its header."""
    with _opened(path) as file:
        header = file.metadata() or {}
        if (kind := (header.get("format"), header.get("step"))) != (FORMAT, str(step)):
            raise ValueError(f"{path} is no snapshot of step {step}: found {kind}, expected {(FORMAT, str(step))}")
        return [float(width) for width in json.loads(header["sigma_rels"])]


def _add(sums: dict[str, Tensor], path: Path, shares: Mapping[float, float]) -> None:
    """Adds every average of a snapshot, times its share; the first snapshot says which parameters there are."""
    first, digest = not sums, hashlib.sha256()
    with _opened(path) as file:
        for key in (keys := sorted(file.keys())):
            tensor = file.get_tensor(key)
            _digest(digest, key, tensor)
            width, name = key.split("/", 1)
            if first:
                sums.setdefault(name, torch.zeros(tensor.shape, dtype=torch.float64))
            if name not in sums or sums[name].shape != tensor.shape:
                raise ValueError(f"{path} does not fit the snapshots before it ({key}): it belongs to another run")
            sums[name].add_(tensor, alpha=shares[float(width)])
        if digest.hexdigest() != file.metadata()["sha256"]:
            raise SafetensorError("its contents have changed")
    if len(keys) != len(shares) * len(sums):
        raise ValueError(f"{path} lacks parameters of the snapshots before it: it belongs to another run")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A snapshot opened for reading; what is wrong with the file is a ValueError that names it."""
    try:
        with safe_open(str(path), "pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"snapshot {path} is damaged ({error}): delete it, and the others are combined without it"
        ) from None


def _digest(digest: Any, key: str, tensor: Tensor) -> None:
    digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
