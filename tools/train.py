"""Train any config, pretraining and downstream alike.

python tools/train.py CONFIG [--gpus N] [--resume] [--start-from CHECKPOINT] [--work-dir DIR]
    [--check] [--log PROGRAM] [--cfg-options KEY=VALUE ...]
"""

from pretrain.runs.cli import run, training_arguments


def main() -> None:
    args = training_arguments()
    from pretrain.runs.start import start

    start(args)


if __name__ == '__main__':
    run(main)
