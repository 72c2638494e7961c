#!/usr/bin/env bash
# Train a config on several nodes of a Slurm cluster: run tools/dist_train.sh once on each node.
# usage: tools/slurm_train.sh CONFIG NODES GPUS_PER_NODE [arguments of tools/train.py]
# SRUN_ARGS holds options for srun: SRUN_ARGS="--partition=gpu --time=72:00:00 --cpus-per-task=64".
# Five minutes before the time limit Slurm warns the run, which saves and exits with 75. This script
# then starts it again with --resume, or requeues the batch job that it runs in. A batch job must ask
# for the warning itself: sbatch --signal=USR1@300 --requeue.
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
read -r -d '' -a srun_args <<< "${SRUN_ARGS:-}" || true  # also over several lines
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || set -- --resume "$@"
# A task that exits with 75 would make Slurm kill the others, so it exits with 0 and writes to this
# file, which all nodes must see.
mkdir -p work_dirs  # git ignores it, so records do not call the repository changed
warned=$(mktemp "$PWD/work_dirs/.slurm_train.XXXXXX")
trap 'rm -f "$warned"' EXIT

status=75
while [ "$status" -eq 75 ]; do
  status=0
  : > "$warned"
  # Each task learns its rank and the first node's name from Slurm, which sends each signal to the
  # shell and to the run: the shell waits until the run has ended.
  # shellcheck disable=SC2016
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus" \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    --kill-on-bad-exit=1 --signal=USR1@300 ${srun_args[@]+"${srun_args[@]}"} \
    bash -c 'trap : USR1 TERM INT
      export MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
      export NNODES=$1 NODE_RANK=$SLURM_NODEID
      code=0
      bash "${@:3}" || code=$?
      [ $code -ne 75 ] || { echo $code > "$2" && code=0; }
      exit $code' \
    slurm "$nodes" "$warned" "$tools/dist_train.sh" "$config" "$gpus" "$@" || status=$?
  [ "$status" -ne 0 ] || [ ! -s "$warned" ] || status=75
  if [ "$status" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID" ||
      echo "error: this job cannot be requeued: repeat the command with --resume" >&2
    break
  fi
  [[ " $* " == *" --resume "* ]] || set -- --resume "$@"
done
exit "$status"
