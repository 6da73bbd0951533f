#!/usr/bin/env bash
# bash scripts/test.sh [pytest arguments] — installs what is missing and runs the tests.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
PYTHONPATH="$ROOT" exec "$VENV/bin/python" -m pytest "$@"
