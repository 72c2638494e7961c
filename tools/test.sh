#!/usr/bin/env bash
# Set up .venv if need be, then lint and run the tests.
# usage: bash tools/test.sh [pytest arguments]     longer tests: bash tools/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Tests run in parallel, one per core: more threads would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest --numprocesses auto --dist worksteal "$@"
