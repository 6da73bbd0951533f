#!/usr/bin/env bash
# bash scripts/setup.sh — makes .venv (or reuses VENV=path) and installs the project with its tools; quick when done.
# PYTHON=/path chooses the interpreter. Sourced by quickstart.sh and test.sh; leaves VENV set.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

MODULES="torch torchvision numpy scipy PIL tqdm safetensors skimage tifffile imagecodecs piq lpips torch_fidelity matplotlib jinja2 tensorboard mpi4py blobfile pytest xdist hypothesis ruff mypy"

setup() {
    local python="${PYTHON:-python3}" log stamp wanted
    VENV="${VENV:-$ROOT/.venv}"
    [[ "$VENV" == /* ]] || VENV="$PWD/$VENV"
    [[ ! -x "$VENV/bin/python" ]] || python="$VENV/bin/python"
    command -v "$python" >/dev/null || fail "no Python found as '$python': install Python 3.10 or newer, or set PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed, '$python' is $("$python" -V 2>&1): install a newer one and set PYTHON=/path/to/python3"

    stamp="$VENV/.ddbm-installed"
    wanted="$(cksum < "$ROOT/pyproject.toml")"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then return; fi
    if [[ ! -x "$VENV/bin/python" ]]; then
        echo "making the environment $VENV"
        "$python" -m venv "$VENV" >/dev/null 2>&1 ||
            fail "'$python -m venv $VENV' failed: install Python's venv module (Debian: python3-venv), or check that the folder can be written"
    fi
    if "$VENV/bin/python" -c "import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in '$MODULES'.split()))"; then
        echo "$wanted" > "$stamp"  # an environment that has everything
        return
    fi
    echo "installing PyTorch and the other packages into $VENV (several GB, once; minutes)"
    log="$VENV/install.log"
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --retries 2 --timeout 20 -e "$ROOT[dev]" > "$log" 2>&1; then
        if grep -qiE 'connection|resolution|timed out|unreachable|no matching distribution' "$log"; then
            fail "the packages could not be downloaded: connect to the network (or set pip's proxy), or set VENV=path to an environment that has them; log: $log"
        fi
        fail "pip failed: $(grep -iE '^error' "$log" | tail -n 1); log: $log"
    fi
    echo "$wanted" > "$stamp"
}

fail() { echo "error: $*" >&2; exit 2; }

setup
[[ "${BASH_SOURCE[0]}" != "$0" ]] || echo "ready: $VENV"
