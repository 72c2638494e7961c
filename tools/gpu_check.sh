#!/usr/bin/env bash
# The first 25 minutes on a new machine with a GPU: does everything work there, and how fast? No step
# stops the others; those marked (GPU) are left out on a machine without one.
# usage: bash tools/gpu_check.sh [REPORT.json [MINUTES]]     needs data/cifar-100-python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
out=work_dirs/gpu_check
cifar=configs/pretrain/cifar100
train="timeout 300 $python tools/train.py"
benchmark="timeout 240 $python tools/benchmark.py"
one_gpu="CUDA_VISIBLE_DEVICES=0 timeout 240 $python -m pytest -q"
debug="import sys, runpy, torch; torch.cuda.set_sync_debug_mode('warn'); sys.argv = sys.argv[1:]"
rm -rf "$out" && mkdir -p "$out"
report=${1:-$out.json}
"$python" -m pretrain.studies.steps "$report" "${2:-25}" <<LIST 2>&1 | tee "${report%.json}.txt"
driver (GPU) | nvidia-smi
runtime | $python -c 'import torch; print(torch.version.cuda, torch.cuda.device_count(), torch.cuda.is_available(), torch.cuda.is_available() and torch.cuda.get_device_capability())'
CUDA tests of pretraining (GPU) | $one_gpu tests/pretrain/test_classifier.py tests/pretrain/datasets/test_cifar.py
CUDA tests of operators (GPU) | $one_gpu tests/downstream/test_mmcv_ops.py tests/downstream/test_mmcv_ops_parity.py
demo pictures | $python -m downstream.builtin data/builtin
demo pretraining | $train configs/demo/r18_sd.py --work-dir $out/r18_sd --cfg-options epochs=2
Table 3, six runs at once (GPU) | nvidia-cuda-mps-control -d > /dev/null 2>&1; timeout 360 $python tools/sweep.py $cifar/resnet20_{bl,sd_t3}.py --seeds 0 1 2 --jobs 6 --work-dir work_dirs/table3 || [ \$? -eq 124 ]; code=\$?; echo quit | nvidia-cuda-mps-control; exit \$code
step at 32 (GPU) | $benchmark step --cfg-options batch_size=32 --json \$JSON
step at 128 (GPU) | $benchmark step --cfg-options batch_size=128 --json \$JSON
run of ResNet-20, BL (GPU) | $benchmark runner $cifar/resnet20_bl.py --json \$JSON
run of ResNet-20, SD (GPU) | $benchmark runner $cifar/resnet20_sd_t3.py --json \$JSON
launches of ResNet-20 | $benchmark launches $cifar/resnet20_sd_t3.py --json \$JSON
synchronisations, warnings counted (GPU) | $python -W always -c "$debug; runpy.run_path(sys.argv[0], run_name='__main__')" tools/train.py $cifar/resnet20_sd_t3.py --work-dir $out/synchronisations --cfg-options epochs=4 train_dataloader.dataset.images=20000 > $out/synchronisations.log 2>&1; code=\$?; grep -c 'synchronizing CUDA operation' $out/synchronisations.log; exit \$code
a rate of 1e9 is one sentence | ! $train configs/demo/r18_sd.py --work-dir $out/rate --cfg-options optim_wrapper.optimizer.lr=1e9 > $out/rate.log 2>&1 && grep '^error: .*loss is' $out/rate.log
export | $python tools/export_backbone.py $out/r18_sd/snapshot_2.pth $out/backbone.pth
demo detection | $train configs/demo/faster_rcnn_r18_voc07.py --work-dir $out/detection --cfg-options backbone_file=$out/backbone.pth
demo segmentation | $train configs/demo/deeplabv3_r18_voc12.py --work-dir $out/segmentation --cfg-options backbone_file=$out/backbone.pth
launches of ResNet-152 | $benchmark launches --json \$JSON
run of ResNet-152, BL (GPU) | $benchmark runner configs/pretrain/r152_bl.py --rounds 2 --json \$JSON
run of ResNet-152, SD (GPU) | $benchmark runner --rounds 2 --json \$JSON
LIST
