#!/usr/bin/env bash
# Train a config with one process for each GPU (or CPU core, on a machine without a GPU).
# usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: run it on each with NNODES, NODE_RANK and MASTER_ADDR (and MASTER_PORT) set;
# GPUS counts those of one node.
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
nodes=${NNODES:-1}

# Once, before the processes start: a mistake is one sentence and not one traceback a process.
"$python" "$tools/train.py" "$config" "$@" --check "$gpus" --nodes "$nodes"

if [ "$nodes" -eq 1 ]; then
  rendezvous=(--standalone)
else
  rendezvous=(--nnodes "$nodes" --node_rank "${NODE_RANK:-0}"
    --master_addr "${MASTER_ADDR:?set it to the address of node 0}"
    --master_port "${MASTER_PORT:-29500}")
fi
cores=$("$python" -c 'import os
print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > gpus ? cores / gpus : 1))}
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$gpus" \
  "$tools/train.py" "$config" "$@"
