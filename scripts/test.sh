#!/usr/bin/env bash
# bash scripts/test.sh [pytest arguments] — installs what is missing and runs the tests, a process a core (-n 0: one process).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
export PYTHONPATH="$ROOT" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
