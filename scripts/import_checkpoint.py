"""Published checkpoints: `python -m scripts.import_checkpoint SRC DST --preset e2h_vp [--flag value ...]`.

SRC is a state dict of DDBM's or SPDM's U-Net, DST becomes the directory of a run with one checkpoint to sample from.
The preset is DATASET_SCHEDULE of args.sh, flags override it. What does not fit is listed, and nothing is written then.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ddbm.bridges.paths import SCHEDULES
from ddbm.config import Config, parse_size
from ddbm.files import checkpoint, stores
from ddbm.files.storage import write_whole
from ddbm.model import BridgeModel, Header, ImageShape
from ddbm.networks import adm
from ddbm.networks.unet import UNet
from ddbm.settings import Settings, from_flags, setting, to_dict

from .common import TABLES, make_directory, run

ROOT = Path(__file__).resolve().parent.parent
EXTRA = {"src": "state dict: .pt or .safetensors", "dst": "directory of the run to write"}


@dataclass(frozen=True)
class FileConfig(Settings):
    """The file of the network"""

    preset: str = setting("", "DATASET_SCHEDULE of args.sh, such as e2h_vp or diode_ve_simple")
    step: int = setting(0, "steps the network was trained; 0: the number at the end of SRC's name", below=10**8)
    attention_order: str = setting(
        "auto", "legacy, heads first, qkv, queries first, or by the shape of the weights", choices=("auto", *adm.ORDERS)
    )
    target_channels: int = setting(3, "channels of the target", above=0)
    source_channels: int = setting(0, "channels of the source; 0: those of the target")


@dataclass(frozen=True)
class ImportConfig(Config):
    """What the run is to be, and the file."""

    file: FileConfig = FileConfig()


def preset_flags(preset: str) -> list[str]:
    """The flags of args.sh for DATASET_SCHEDULE, as the launchers put them together."""
    schedules = sorted(SCHEDULES, key=len, reverse=True)
    match = re.fullmatch(rf"([A-Za-z0-9_.][A-Za-z0-9_.-]*?)_({'|'.join(schedules)})", preset)
    if not match:
        raise ValueError(
            f"'{preset}' is no --preset DATASET_SCHEDULE, such as e2h_vp; schedules: {', '.join(SCHEDULES)}"
        )
    script = 'source "$0"; preset "$1" "$2"; printf "%s\\0" "${ARGS[@]}"'
    command = ["bash", "-c", script, str(ROOT / "scripts" / "launch.sh"), *match.groups()]
    done = subprocess.run(command, env=os.environ | {"VENV": sys.prefix}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"args.sh could not be read: {done.stderr.strip().removeprefix('error: ')}")
    return done.stdout.split("\0")[:-1]


def read_file(path: Path) -> Any:
    """What a file of tensors holds; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = getattr(error, "strerror", None) or "it is damaged, or no file of tensors"
        reason = f"it asks for {asked[1]}, which is no tensor" if asked else reason
        raise ValueError(
            f"{path} was refused, nothing in it was executed: {reason}; give a state dict, .pt or .safetensors"
        ) from None


def network_in(content: Any, path: Path) -> dict[str, Any]:
    """The one state dict of ADM's U-Net in a file: all of it, or an entry; without the prefix of DDP."""
    entries = content if isinstance(content, Mapping) else {}
    found = {}
    for name, entry in [("", content), *entries.items()]:
        if isinstance(entry, Mapping):
            prefix = "module." if all(str(key).startswith("module.") for key in entry) else ""
            bare = {str(key).removeprefix(prefix): value for key, value in entry.items()}
            if all(any(key.startswith(top) for key in bare) for top in ("time_embed.", "input_blocks.", "out.")):
                found[str(name)] = bare
    if len(found) != 1:
        names = ", ".join(map(str, list(found or entries)[:4])) or type(content).__name__
        raise ValueError(
            f"{path} holds {'several networks' if found else 'no state dict of ADM'}: found {names}; expected one, "
            "of names that begin with time_embed, input_blocks, middle_block, output_blocks and out"
        )
    return next(iter(found.values()))


def main(argv: Sequence[str]) -> int:
    preset = from_flags(ImportConfig, argv, EXTRA, tables=TABLES)[0].file.preset
    settings, extra = from_flags(ImportConfig, [*preset_flags(preset), *argv], EXTRA, tables=TABLES)
    told, config = settings.file, Config(**{f.name: getattr(settings, f.name) for f in fields(Config)})
    if config.data.data_dir:  # so that the data is found from any directory
        config = replace(config, data=replace(config.data, data_dir=stores.full(config.data.data_dir)))
    if config.model.backbone != "adm":
        raise ValueError(f"--backbone {config.model.backbone} has no counterpart in these files: use adm")
    if config.model.layers == "regular":
        raise ValueError("--layers regular has no counterpart in these files: use plain or tied")
    size = parse_size(config.data.image_size)
    if size is None:
        raise ValueError(f"preset {preset} names no size of images: add --image_size N, or a data set of args.sh")
    channels = told.target_channels, told.source_channels or told.target_channels
    images = ImageShape(*channels, *size, config.data.num_classes)
    mirror = stores.Mirror(extra.dst)
    mirror.fetch("config.json", f"*{checkpoint.MANIFEST}")
    path, dst = stores.fetched(extra.src), mirror.path
    steps = [told.step] if told.step else re.findall(r"(?:^|[_-])(\d{1,8})(?:_adapted)?\.\w+$", path.name)
    if not steps:  # as in ema_0.9999_420000.pt
        raise ValueError(f"the name {path.name} ends in no number: add --step N, the steps the network was trained")
    step = int(steps[0])
    if taken := [name for name in ("checkpoints", "config.json") if (dst / name).exists()]:
        raise ValueError(f"{dst} already has {', '.join(taken)}: choose another directory")

    tensors = network_in(read_file(path), path)
    if odd := [k for k, v in tensors.items() if isinstance(v, Tensor) and (v.layout != torch.strided or v.is_meta)]:
        raise ValueError(f"{path}: {', '.join(odd)} is sparse or without values: save dense tensors")
    order = adm.attention_order(tensors) if told.attention_order == "auto" else told.attention_order
    model = BridgeModel(config, images)
    assert isinstance(model.network, UNet)
    weights, misfits = adm.translate(model.network, tensors, config.model.group, order)
    if odd := [k for k, v in tensors.items() if isinstance(v, Tensor) and not v.float().isfinite().all()]:
        misfits["not finite"] = odd
    for kind, names in misfits.items():
        print(f"{kind} ({len(names)}):", *(f"    {name}" for name in names), sep="\n")
    if misfits:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in misfits.items())
        raise ValueError(
            f"{path} does not fit preset {preset}: {counts}, see the list; give the flags of the file's network, such "
            "as --channel_mult, or --layers plain for kernels without symmetry"
        )
    checkpoint.load_weights(model.network, weights, path)

    header, average = to_dict(Header(config, images, step)), model.network.state_dict()
    state = {"imported": {"file": path.name, "attention_order": order}}
    written = checkpoint.write(checkpoint.path_of(make_directory(dst), step), header, {"ema": average}, state)
    write_whole(dst / "config.json", json.dumps(to_dict(config), indent=2).encode())
    mirror.send()
    hint = ", by the shape of its weights: --attention_order tells another" if told.attention_order == "auto" else ""
    print(f"{path}: {len(tensors)} tensors; order of attention {order}{hint}")
    print(stores.address(written))
    return 0


if __name__ == "__main__":
    run(main)
