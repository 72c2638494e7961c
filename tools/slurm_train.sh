#!/usr/bin/env bash
# Train a config on several nodes of a Slurm cluster: tools/dist_train.sh once on each.
# usage: tools/slurm_train.sh CONFIG NODES GPUS_PER_NODE [arguments of tools/train.py]
# SRUN_ARGS is handed to srun: SRUN_ARGS="--partition=gpu --time=72:00:00 --cpus-per-task=64".
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: tools/slurm_train.sh CONFIG NODES GPUS_PER_NODE [arguments of tools/train.py]" >&2
  exit 2
fi
config=$1
nodes=$2
gpus=$3
shift 3
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -r -a srun_args <<< "${SRUN_ARGS:-}"

# Each task learns its rank and the first node's name from Slurm.
# shellcheck disable=SC2016
exec srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus" \
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  --kill-on-bad-exit=1 ${srun_args[@]+"${srun_args[@]}"} \
  bash -c 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) \
    NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID exec bash "$@"' \
  slurm "$tools/dist_train.sh" "$config" "$gpus" "$@"
