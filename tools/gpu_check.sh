#!/usr/bin/env bash
# Check in 25 minutes that everything works on a new GPU machine, then how fast. If a step fails, the
# others still run. Without a GPU, the steps marked (GPU) are left out.
# usage: bash tools/gpu_check.sh [REPORT.txt [MINUTES]]     needs data/cifar-100-python
# REPORT.json adds all measurements to the report. REPORT.steps/3.log has the output of step 3.
set -uo pipefail
report=
case ${1:-} in
  -*) echo "usage: bash tools/gpu_check.sh [REPORT.txt [MINUTES]]" >&2 && exit 2 ;;
  ?*) report=$(realpath -m -- "$1") ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
report=${report:-$PWD/work_dirs/gpu_check.txt}
if [ -e "$report" ] && [ ! -f "$report" ]; then
  echo "error: $report is not a file: name one for the report, such as $report/gpu_check.txt." >&2
  exit 1
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # an environment without the suite finds it too
out=work_dirs/gpu_check
steps=${report%.txt}.steps
json=${report%.txt}.json
end=$((SECONDS + ${2:-25} * 60))
rm -rf "$out" "$steps" && rm -f "$report" "$json" && mkdir -p "$out" "$steps"
say() { echo "$1" | tee -a "$report"; }
machine=$("$python" -c 'import os, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"torch {torch.__version__}, {gpu}, {os.cpu_count()} cores")')
say "$machine"
number=0 failed=0 running=
quit_mps="[ ! -e '$steps/mps' ] || { echo quit | nvidia-cuda-mps-control; rm '$steps/mps'; }"
trap "$quit_mps" EXIT
trap 'kill $running 2> /dev/null; exit 129' HUP
trap 'kill $running 2> /dev/null; exit 130' INT
trap 'kill $running 2> /dev/null; exit 143' TERM

# Run the command $2 and report a line about it under the name $1.
step() {
  number=$((number + 1))
  local result='done' log=$steps/$number.log begun=$SECONDS
  if [[ $1 == *'(GPU)' && $machine == *'no GPU'* ]]; then
    result='left out: this machine has no GPU'
  elif ((SECONDS >= end)); then
    result='not started: out of time'
  else
    # timeout kills the command and its process group, in which timeouts of a step must stay.
    JSON=$steps/$number.json timeout --signal=KILL $((end - SECONDS)) \
      bash -o pipefail -c "$2" > "$log" 2>&1 < /dev/null &
    running=$!
    wait "$running"
    local code=$?
    running=
    if ((code && SECONDS >= end)); then
      result='stopped: out of time'
    elif ((code)); then
      result="exit code $code: $({ grep '^error: ' "$log" || grep . "$log"; } | tail -n 1)"
    elif [ -s "$log" ] && (($(wc -l < "$log") <= 2)); then
      result="done: $(paste -sd ' ' "$log")"
    fi
  fi
  [[ $result == done* || $result == left* ]] || failed=$((failed + 1))
  say "$1: $result ($((SECONDS - begun)) s)"
}

cifar=configs/pretrain/cifar100
train="timeout --foreground 300 $python tools/train.py"
benchmark="timeout --foreground 240 $python tools/benchmark.py"
on_gpu="CUDA_VISIBLE_DEVICES=0 timeout --foreground 240 $python -m pytest -q -k 'cuda or cifar'"
debug="import sys, runpy, torch; torch.cuda.set_sync_debug_mode('warn'); sys.argv = sys.argv[1:]"
while IFS= read -r line; do
  step "${line%% | *}" "${line#* | }"
done <<LIST
driver (GPU) | nvidia-smi
runtime | $python -c 'import torch; print(torch.version.cuda, torch.cuda.device_count(), torch.cuda.is_available(), torch.cuda.is_available() and torch.cuda.get_device_capability())'
CUDA tests of pretraining (GPU) | $on_gpu tests/pretrain/test_classifier.py tests/pretrain/test_graph.py tests/pretrain/datasets/test_cifar.py
CUDA tests of operators (GPU) | $on_gpu tests/downstream/test_mmcv_ops.py tests/downstream/test_mmcv_ops_parity.py
demo images | $python -m downstream.builtin data/builtin
demo pretraining | $train configs/demo/r18_sd.py --gpus 1 --work-dir $out/r18_sd --cfg-options epochs=2
peak memory in record and log (GPU) | grep -o 'peak_memory_mb.*' $out/r18_sd/run.json; grep -oh 'memory: [0-9]*' $out/r18_sd/*/*.log | sort -nk2 | tail -n 1
a learning rate of 1e9 gives one error line | ! $train configs/demo/r18_sd.py --work-dir $out/rate --cfg-options optim_wrapper.optimizer.lr=1e9 > $out/rate.log 2>&1 && grep '^error: .*loss is' $out/rate.log
export | $python tools/export.py $out/r18_sd/snapshot_2.pth $out/backbone.pth
demo detection | $train configs/demo/faster_rcnn_r18_voc07.py --work-dir $out/detection --cfg-options backbone_file=$out/backbone.pth
demo segmentation | $train configs/demo/deeplabv3_r18_voc12.py --work-dir $out/segmentation --cfg-options backbone_file=$out/backbone.pth
Table 3, six runs at once (GPU) | nvidia-cuda-mps-control -d > /dev/null 2>&1 && touch '$steps/mps'; timeout --foreground 360 $python tools/sweep.py $cifar/resnet20_{bl,sd_t3}.py --seeds 0 1 2 --jobs 6 --work-dir work_dirs/table3 || [ \$? -eq 124 ]; code=\$?; $quit_mps; exit \$code
synchronisations, the lines with most (GPU) | $python -W always -c "$debug; runpy.run_path(sys.argv[0], run_name='__main__')" tools/train.py $cifar/resnet20_sd_t3.py --work-dir $out/synchronisations --cfg-options epochs=4 train_dataloader.dataset.images=20000 > $out/synchronisations.log 2>&1; code=\$?; grep 'synchronizing CUDA operation' $out/synchronisations.log | grep -o '[^/]*/[^/]*py:[0-9]*' | sort | uniq -c | sort -rn | head -n 5 | paste -sd ' '; exit \$code
step at 32 (GPU) | $benchmark step --cfg-options batch_size=32 --json "\$JSON"
step at 128 (GPU) | $benchmark step --cfg-options batch_size=128 --json "\$JSON"
run of ResNet-20, BL (GPU) | $benchmark runner $cifar/resnet20_bl.py --json "\$JSON"
kernels of ResNet-20 | $benchmark kernels $cifar/resnet20_sd_t3.py --json "\$JSON"
run of ResNet-152, BL (GPU) | $benchmark runner --rounds 2 --json "\$JSON"
run of DeepLabv3 (GPU) | $benchmark finetune configs/downstream/deeplabv3_r152_voc12aug.py --json "\$JSON"
run of Faster R-CNN (GPU) | $benchmark finetune configs/downstream/faster_rcnn_r152_voc07.py --json "\$JSON"
kernels of ResNet-152 | $benchmark kernels --json "\$JSON"
LIST

"$python" -c 'import json, pathlib, re, sys
machine, *lines = open(sys.argv[1])
steps = [re.fullmatch(r"(.*?): (.*) \((\d+) s\)", line.strip()).groups() for line in lines]
steps = [{"step": step, "result": result, "seconds": int(spent)} for step, result, spent in steps]
found = sorted(pathlib.Path(sys.argv[2]).glob("*.json"), key=lambda path: int(path.stem))
measured = [json.loads(path.read_bytes()) for path in found]
print(json.dumps({"machine": machine.strip(), "steps": steps, "measured": measured}, indent=1))
' "$report" "$steps" > "$json"
if compgen -G "$steps/*.json" > /dev/null; then
  say "$("$python" tools/benchmark.py show "$steps"/*.json)"
fi
if ((failed)); then
  say "error: $failed of $number steps failed, see $report, $json and $steps/."
  exit 1
fi
