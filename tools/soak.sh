#!/usr/bin/env bash
# Kill small pretraining and fine-tuning runs KILLS times each at random moments and resume them after
# each kill. Compare their results bit for bit with those of uninterrupted runs, and report them.
# Each kill takes three to four seconds.
# usage: tools/soak.sh KILLS [REPORT.json]
set -euo pipefail
[ $# -lt 2 ] || set -- "$1" "$(realpath -m -- "$2")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without PYTHONPATH, Python would import tests/pretrain instead of the package.
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
exec .venv/bin/python tests/soak.py "$@"
