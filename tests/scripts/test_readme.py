"""The README's way from raw files to a translated picture, as it stands there, with a small network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.scripts.sampling_runs import ROOT, environment

SMALL = (
    " --model_channels 8 --num_head_channels 8 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8"
    " --batch_size 2 --total_steps 2 --device cpu --tensorboard false"
)
COMMAND = re.compile(r"python (-m (?:datasets|scripts|benchmarks)[\w.]*|evaluations/evaluator\.py)")


def test_every_command_says_what_to_do_where_no_environment_is_active():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = {command for page in pages for command in COMMAND.findall(page.read_text())}
    assert len(commands) > 20 and {"-m datasets.prepare", "evaluations/evaluator.py"} < commands
    for command in commands:
        bare = [sys.executable, "-S", *command.split()]  # -S: without what is installed
        done = subprocess.run(bare, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
        line = f"error: {sys.executable} lacks PyTorch: source .venv/bin/activate (bash scripts/setup.sh makes .venv)\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line), command


def test_a_folder_that_was_removed_and_ctrl_c_before_a_command_begins(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    run = dict(env=environment(), capture_output=True, text=True, timeout=60)
    done = subprocess.run(f"rmdir '{here}'; '{sys.executable}' -m datasets.check x", shell=True, cwd=here, **run)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the folder you stand in was removed, perhaps made anew: cd to it again\n",
    )
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")  # while it is imported
    run["env"] |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for command in ("-m datasets.prepare", "-m scripts.sample", str(ROOT / "evaluations/evaluator.py")):
        done = subprocess.run([sys.executable, *command.split()], cwd=ROOT if "-m" in command else tmp_path, **run)
        assert (done.returncode, done.stderr) == (130, "stopped\n"), command
    done = subprocess.run([sys.executable, "-c", "import ddbm"], cwd=tmp_path, **run)
    assert done.returncode != 130 and "Traceback" in done.stderr  # somebody's program
    done = subprocess.run([sys.executable, "-S", "-c", "import ddbm"], cwd=ROOT, **run | {"env": environment()})
    assert done.stderr.rstrip().endswith("No module named 'torch'")


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
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # an environment activated
    # WORKDIR: else the checkout's, in which the README stands
    own = environment(VENV=sys.prefix, PATH=bin_first, WORKDIR=str(tmp_path / "workdir"))
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "64x64" in (tmp_path / "check.html").read_text()
    assert [path.name for path in sorted((tmp_path / "results").glob("*.png"))] == [f"slide {n}.png" for n in range(4)]
