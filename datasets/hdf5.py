"""Pairs in one HDF5 file: `source`, `target` [N, H, W, C], and if there are any `mask`, `split`, `name`, `class`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .images import Unreadable
from .rows import Entry, Pack, Read, refuse_unlike

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TEXTS = ("split", "name", "class")  # of every pair; of the splits all are train without


def record(path: Path) -> Pack:
    """What a file says of its pairs. Raises ValueError, naming it, for one that says it wrongly."""
    with _opened(path) as file:
        return _record(path, file)


def _record(path: Path, file: Any) -> Pack:
    if missing := [key for key in ("source", "target") if key not in file]:
        found = ", ".join(sorted(file)) or "nothing"
        raise ValueError(
            f"{path}: no dataset '{missing[0]}', it holds {found}; expected source and target [N, H, W, C]"
        )
    there = [key for key in ("source", "target", "mask", *TEXTS) if key in file]
    if others := [key for key in there if not hasattr(file.get(key), "shape")]:
        raise ValueError(f"{path}: {others[0]} is a group, or a link that leads nowhere, expected a dataset")
    count = len(file["source"]) if file["source"].ndim else 0
    for key in there:
        shape, wanted = file[key].shape, {"source": 4, "target": 4, "mask": 3}.get(key, 1)
        if len(shape) != wanted:
            axes = "[N, H, W, C]"[: 3 * wanted - 1] + "]"
            raise ValueError(f"{path}: {key} has shape {list(shape)}, expected {wanted} axes, {axes}")
        if shape[0] != count or shape[1 : min(wanted, 3)] != file["source"].shape[1 : min(wanted, 3)]:
            alike = f"{list(file['source'].shape[: min(wanted, 3)])} as source has"
            raise ValueError(f"{path}: {key} has shape {list(shape)}, expected {alike}; write one for every pair")
    texts = {key: _texts(path, key, file[key]) for key in TEXTS if key in file}
    splits = tuple(SPLITS.get(text.lower(), text) for text in texts.get("split", ("train",) * count))
    if strange := sorted(set(splits) - set(SPLITS.values())):
        raise ValueError(f"{path}: split holds '{strange[0]}', expected train, val or test")
    kinds = texts.get("class", ("",) * count)
    numbers = tuple(f"{n:0{len(str(count))}}" for n in range(count))
    return Pack(texts.get("name", numbers), splits, kinds)


def reader(path: Path) -> Read:
    file = _opened(path)
    source, target, mask = (_rows(path, file[key]) if key in file else None for key in ("source", "target", "mask"))

    def read(n: int) -> Entry:
        assert source is not None and target is not None, "the record has been read"
        try:
            return source[n], target[n], None if mask is None else mask[n] > 0
        except OSError as error:  # of a filter, whose text does not say where
            raise Unreadable(f"{path}: pair {n} cannot be read ({error}); copy or make it again") from None

    return read


def write(out: Path, entries: Iterator[Entry], pack: Pack) -> None:
    with _h5py(out).File(out, "w") as file:
        first: Entry | None = None
        for n, (name, entry) in enumerate(zip(pack.names, entries, strict=True)):
            if first is None:
                first = entry
                needed = len(pack.names) * sum(pixels.nbytes for pixels in entry if pixels is not None)
                if needed > (free := shutil.disk_usage(out.parent).free):  # HDF5 crashes on a full disk
                    raise ValueError(f"{out.parent}: has room for {free} bytes, the pairs take {needed}; make some")
                for key, pixels in zip(("source", "target"), entry, strict=False):
                    assert pixels is not None
                    file.create_dataset(key, (len(pack.names), *pixels.shape), pixels.dtype)
            refuse_unlike(name, entry, pack.names[0], first)
            source, target, mask = entry
            file["source"][n], file["target"][n] = source, target
            if mask is not None and "mask" not in file:
                file.create_dataset("mask", (len(pack.names), *mask.shape), bool)[:] = True
            if mask is not None:
                file["mask"][n] = mask
        for key, texts in zip(TEXTS, (pack.splits, pack.names, pack.kinds), strict=True):
            if any(texts):
                file[key] = list(texts)


def _rows(path: Path, dataset: Any) -> Any:
    """The rows of a dataset; of one that lies in the file as it is in memory, mapped."""
    place = dataset.id.get_offset()
    if place is None or not dataset.dtype.isnative or dataset.external:
        return dataset
    kind = np.dtype(bool) if dataset.dtype == bool else dataset.dtype
    return np.memmap(path, kind, "r", place, dataset.shape)


def _texts(path: Path, key: str, dataset: Any) -> tuple[str, ...]:
    """Texts as they are, whole numbers with zeros before them: their order is that of the numbers.

    Raises ValueError, naming the file, for anything else.
    """
    import h5py

    if dataset.dtype.kind in "iu":
        return tuple(f"{n:0{len(str(dataset[:].max()))}}" for n in dataset[:].tolist())
    try:
        if h5py.check_string_dtype(dataset.dtype):
            return tuple(dataset.asstr()[:].tolist())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {key} holds bytes that are no text; write it as UTF-8") from None
    raise ValueError(f"{path}: {key} is {dataset.dtype}, expected texts or whole numbers; write it as these")


def _opened(path: Path) -> Any:
    try:
        return _h5py(path).File(path, "r")
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read as HDF5 ({error}); copy or make it again") from None


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path}: HDF5 is read by h5py ({error}): pip install -e '.[hdf5]'") from None
    return h5py
