"""``python -m pretrain CONFIG`` is ``tools/train.py CONFIG``, wherever the suite is installed."""

from pretrain.runs.cli import run, training_arguments


def main() -> None:
    args = training_arguments()
    from pretrain.runs.start import start

    start(args)


if __name__ == '__main__':
    run(main)
