"""Train a config of either stage: pretraining or downstream.

python tools/train.py CONFIG [--gpus N] [--resume] [--start-from CHECKPOINT] [--work-dir DIR]
    [--check] [--accept-change KEY] [--log PROGRAM] [--cfg-options KEY=VALUE ...]
"""

from pretrain.__main__ import main
from pretrain.runs.cli import run

if __name__ == '__main__':
    run(main)
