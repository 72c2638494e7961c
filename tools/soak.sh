#!/usr/bin/env bash
# Kill a small pretraining and a small fine-tuning run KILLS times each at random moments, resume them
# after each kill, compare them bit for bit with runs that nobody killed, and write what came of it.
# A kill takes three to four seconds.
# usage: tools/soak.sh KILLS [REPORT.json]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without the path, Python would take the folder tests/pretrain for the package.
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
exec .venv/bin/python tests/soak.py "$@"
