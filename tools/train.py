"""Train any config, pretraining and downstream alike.

python tools/train.py CONFIG [--gpus N] [--resume] [--start-from CHECKPOINT] [--work-dir DIR]
    [--check] [--cfg-options KEY=VALUE ...]
"""

from pretrain.runs.cli import run
from pretrain.runs.start import main

if __name__ == '__main__':
    run(main)
