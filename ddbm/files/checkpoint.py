"""Checkpoints on disk: one directory a step, visible under its final name only when whole.

    RUN/checkpoints/step_00001000/
        config.json          the header: settings, image shape, step
        model.safetensors    weights, and one such file for each moving average
        state.pt             what else resuming needs: tensors and plain values, read with weights_only=True
        manifest.json        size and SHA-256 of the others, written last

Nothing in a checkpoint is ever executed.
"""

import hashlib
import io
import json
import re
import reprlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from . import storage, stores

FORMAT = "ddbm-checkpoint-1"
CONFIG, STATE, MANIFEST = "config.json", "state.pt", "manifest.json"
NAME = re.compile(r"step_(\d{8})")


def path_of(run_dir: Path, step: int) -> Path:
    """Where a run has the checkpoint of a step."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def write(final: Path, header: dict[str, Any], weights: dict[str, dict[str, Tensor]], state: Any) -> Path:
    """Writes a checkpoint that is there whole or not at all; an OSError (full disk) leaves nothing behind."""
    files: dict[str, dict[str, Any]] = {}
    try:
        with storage.named(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            put_back(final.parent)
        for left in final.parent.glob(".step_*"):  # of a save that was killed
            storage.remove(left)
        with storage.whole_directory(final) as aside:

            def put(name: str, data: Any) -> None:
                (aside / name).write_bytes(data)
                files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

            put(CONFIG, json.dumps(header, indent=2).encode())
            for name, tensors in weights.items():
                kept = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
                put(f"{name}.safetensors", safetensors.torch.save(kept))
            buffer = io.BytesIO()
            torch.save(state, buffer)
            put(STATE, buffer.getbuffer())
            manifest = {"format": FORMAT, "step": header["step"], "files": files}
            put(MANIFEST, json.dumps(manifest, indent=2).encode())
    except OSError as error:
        raise OSError(f"{error}; earlier checkpoints are untouched") from error
    return final


def put_back(folder: Path) -> None:
    """Gives a checkpoint that was written again its name, if a kill came when neither the old nor the new one had it.

    To the new one, or the old one, whichever is whole. For whoever holds the run's lock alone.
    """
    for old in sorted(folder.glob(".step_*.old")):
        final = old.with_name(old.name[1:].removesuffix(".old"))
        for path in [*folder.glob(f".{final.name}.[0-9]*"), old]:
            with suppress(ValueError, OSError):  # the latter too where something has the name
                verify(path)
                path.rename(final)
                break


def verify(path: Path) -> None:
    """Raises ValueError unless `path` is a whole checkpoint."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        state = "has no manifest.json" if path.is_dir() else "is a file" if path.exists() else "is not there"
        expected = "expected a directory step_NNNNNNNN of a run's checkpoints/, or the run's directory"
        raise ValueError(f"no checkpoint at {path}, it {state}: {expected}")
    try:
        content = storage.read_json(manifest)
        kind = content["format"]
        wanted = {name: (int(entry["size"]), entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError(f"{manifest} is damaged: use another checkpoint of the run") from None
    if kind != FORMAT:
        kind = reprlib.repr(kind)
        raise ValueError(f"{path} is a checkpoint of another kind: found format {kind}, expected {FORMAT!r}")
    kinds = {name if name in (CONFIG, STATE) else Path(name).suffix for name in wanted}
    if any("/" in name for name in wanted) or not {CONFIG, STATE, ".safetensors"} <= kinds:
        raise ValueError(
            f"{manifest} is damaged: found {', '.join(sorted(wanted)) or 'no file'}, expected {CONFIG}, {STATE} and "
            "weights (*.safetensors) beside it; use another checkpoint of the run"
        )
    for name, (size, digest) in wanted.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size or _digest(file) != digest:
            state = "missing" if found is None else "changed" if found == size else f"{found} bytes long, not {size}"
            raise ValueError(f"checkpoint {path} is damaged: {name} is {state}; use another checkpoint of the run")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def steps(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything that has a checkpoint's name, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in (run_dir / "checkpoints").glob("*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest(
    run_dir: Path, warn: Callable[[str], None], bring: Callable[[Path], object] = lambda path: path
) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones, and those that cannot be read, are named and passed over.

    bring: called before a checkpoint is looked at, to have more of it than its manifest here.
    """
    for _, path in reversed(steps(run_dir)):
        bring(path)
        try:
            verify(path)
            return path
        except ValueError as error:
            warn(f"warning: {error}")
        except OSError as error:
            warn(f"warning: checkpoint {path} cannot be read ({error.strerror or error})")
    return None


def find(place: str | Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint that a path or an address of a store names: itself, or the newest of a run's directory.

    Of a store that one alone is fetched.
    """
    place = stores.address(place) if isinstance(place, Path) else place
    path = stores.fetched(place, f"*{MANIFEST}")

    def bring(found: Path) -> None:
        if stores.is_store(place):
            stores.fetched(stores.address(found))

    run_dir = path.parent if path.name == "checkpoints" else path
    if (run_dir / "checkpoints").is_dir():
        newest = latest(run_dir, warn, bring)
        if newest is None:
            raise ValueError(f"{run_dir} has no whole checkpoint: train first, or give another one")
        return newest
    bring(path)
    verify(path)
    return path


def read_header(path: Path, section: str = "") -> dict[str, Any]:
    """What a checkpoint says of itself; section: of settings that must be there, "model" of a bridge or "codec"."""
    header = storage.read_json(path / CONFIG)
    if not isinstance(header, dict) or not isinstance(header.get("step"), int):
        raise ValueError(f"{path / CONFIG} is damaged: expected settings with a step")
    config = header.get("config")
    if section and not (isinstance(config, dict) and section in config):
        what, command = ("codec", "scripts.train_codec") if section == "codec" else ("bridge", "scripts.train")
        raise ValueError(f"{path} is a checkpoint, but of no {what}: give a run of {command}")
    return header


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    file = path / f"{name}.safetensors"
    if not file.exists():
        held = ", ".join(sorted(p.stem for p in path.glob("*.safetensors")))
        hint = ": an average alone can be sampled from, and be a beginning (--begin_from)" if name == "model" else ""
        raise ValueError(f"{path} holds no weights '{name}', only {held}{hint}")
    try:
        return safetensors.torch.load(file.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from None


def load_weights(network: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads a state dict whose names and shapes must be those of the network."""
    check_weights(network.state_dict(), weights, path)
    network.load_state_dict(weights)


def check_weights(own: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError unless names and shapes are the same; the first that differs is named."""
    for name in sorted(own.keys() | weights.keys()):
        shapes = [list(d[name].shape) if name in d else "nothing" for d in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} does not fit its settings: {name} is {shapes[0]}, expected {shapes[1]}")


def read_state(path: Path) -> Any:
    try:
        with (path / STATE).open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path / STATE} was refused, it holds more than tensors or is damaged: {reason}") from None


def prune(run_dir: Path, keep: int, every: int = 0, whole: Path | None = None) -> None:
    """Deletes all but the newest `keep` checkpoints (0: keeps all), those of steps that are multiples of `every`, the
    one that `best.json` names, and the newest that is whole; whole: one that is known to be.

    Links and files that have a checkpoint's name are somebody's own, and stay.
    """
    old = steps(run_dir)[: -keep or None] if keep else []
    whole = whole or latest(run_dir, lambda message: None)
    kept = {best(run_dir).get("checkpoint"), whole.name if whole else None}
    for step, path in old:
        ours = path.is_dir() and not path.is_symlink()
        if ours and path.name not in kept and not (every and step % every == 0):
            storage.remove(
                path.rename(path.with_name(f".{path.name}.gone"))
            )  # hidden first: no part looks like a whole


def best(run_dir: Path) -> dict[str, Any]:
    """What `best.json` says: checkpoint, metric, value; empty if it is not there or names no checkpoint of the run."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = dict(storage.read_json(run_dir / "best.json"))
        if NAME.fullmatch(content["checkpoint"]) and (run_dir / "checkpoints" / content["checkpoint"]).is_dir():
            return content
    return {}


def _on_one_core() -> None:
    """Lets this thread compute alone.

    OpenMP keeps threads for everyone who computes on several cores. Once there are more of them than cores, they no
    longer wait awake, and a training step on a CPU takes half as long again.
    """
    torch.get_num_threads()  # a thread takes the number of the others when it first asks
    torch.set_num_threads(1)


class Writer:
    """Writes in a thread while training goes on, one thing after another; an error is raised at the next call."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        """then: called after whatever was written, in the thread."""
        self._then, self._thread = then, ThreadPoolExecutor(1)
        threads = torch.get_num_threads()
        self._thread.submit(_on_one_core).result()
        torch.set_num_threads(threads)  # that of one thread is also the number of threads to come
        self._writing: Future[None] | None = None

    def submit(self, write: Callable[[], object] = lambda: None) -> None:
        """Waits for what is being written, so that at most one copy of the state is held, and writes the next."""
        self.wait()

        def run() -> None:
            write()
            self._then()

        self._writing = self._thread.submit(run)

    def wait(self) -> None:
        """Returns when everything is on the disk, or raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            with suppress(Exception) if kind else nullcontext():
                self.wait()
