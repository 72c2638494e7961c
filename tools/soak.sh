#!/usr/bin/env bash
# Kill a pretraining and a fine-tuning run KILLS times each at random moments, resume them after each
# kill, and compare them bit for bit with runs that nobody killed. A kill takes about half a minute.
# usage: tools/soak.sh KILLS [NEW_FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${2:-work_dirs/soak}
if [ $# -lt 1 ] || [ -e "$folder" ]; then
  echo "usage: tools/soak.sh KILLS [NEW_FOLDER] ($folder must not exist)" >&2
  exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m tests.soak "$1" "$folder"
