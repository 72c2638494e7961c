"""``python -m pretrain CONFIG`` does the same as ``tools/train.py CONFIG``, from any directory."""

from pretrain.runs.cli import run, training_arguments


def main() -> None:
    args = training_arguments()
    from pretrain.runs.start import start

    start(args)


if __name__ == '__main__':
    run(main)
