#!/usr/bin/env bash
# Train a config with one process per GPU (without a GPU, GPUS processes on the CPU).
# usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: run it on each node with NNODES, NODE_RANK and MASTER_ADDR (and MASTER_PORT) set;
# GPUS is the number of GPUs per node.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]" >&2
  exit 2
fi
config=$1
gpus=$2
shift 2
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$tools/../.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$tools/train.py" "$config" --gpus "$gpus" "$@"
