#!/usr/bin/env bash
# The whole pipeline on the built-in images, on two CPU cores in minutes: pretrain a ResNet-18 as
# baseline (BL) and with Snapshot Distillation (SD), fine-tune both for detection and segmentation,
# print the transfer table. Stopped and started again it goes on where it was.
# usage: bash tools/demo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
python=.venv/bin/python
"$python" -m downstream.builtin data/builtin
exec "$python" tools/transfer.py \
  --backbone BL=configs/demo/r18_bl.py --backbone SD=configs/demo/r18_sd.py \
  --configs configs/demo/faster_rcnn_r18_voc07.py configs/demo/deeplabv3_r18_voc12.py \
  --seeds 0 --work-dir work_dirs/demo
