"""The README's way from raw files to a translated picture, as it stands there, with a small network."""

import re
import subprocess

import numpy as np
from PIL import Image

from tests.scripts.sampling_runs import ROOT, environment

SMALL = (
    " --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8"
    " --batch_size 2 --total_steps 2 --device cpu --tensorboard false"
)


def test_from_raw_files_to_a_translated_picture(tmp_path):
    block = re.search(r"```bash\n(python -m datasets\.prepare.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    commands = [line.split("  #")[0] for line in block.splitlines()]
    assert len(commands) == 4
    for side in ("HE", "IHC"):
        (tmp_path / "raw" / side).mkdir(parents=True)
        for n in range(4):
            pixels = np.random.default_rng(n).integers(0, 200, (64, 128, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "raw" / side / f"slide {n}.png")
    commands[2] = commands[2].replace("train_ddbm.sh", str(ROOT / "train_ddbm.sh")) + SMALL
    commands[3] = commands[3].replace("/path/to/images", "raw/HE") + " --nfe 2 --device cpu"
    own = environment(WORKDIR=str(tmp_path / "workdir"))  # else the checkout's, in which the README stands
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "64x64" in (tmp_path / "check.html").read_text()
    assert [path.name for path in sorted((tmp_path / "results").glob("*.png"))] == [f"slide {n}.png" for n in range(4)]
