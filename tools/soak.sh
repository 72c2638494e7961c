#!/usr/bin/env bash
# Kill a pretraining and a fine-tuning run KILLS times each at random moments, resume them after each
# kill, and compare them bit for bit with runs that nobody killed. A kill takes about half a minute.
# usage: tools/soak.sh KILLS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -ne 1 ]; then
  echo 'usage: tools/soak.sh KILLS' >&2
  exit 2
fi
export SOAK_KILLS=$1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -s -m faults tests/test_soak.py
