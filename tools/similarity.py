"""How much may teacher and student have in common? Train and print Table 2 (Section 3.3.2).

python tools/similarity.py --work-dir work_dirs/table2    # DenseNet-100, 300 epochs, 2 seeds
"""

import argparse
from pathlib import Path

from pretrain.runs.cli import add_launcher_arguments, run

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'pretrain' / 'cifar100'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, default=CONFIGS / 'densenet100_bl.py')
    parser.add_argument('--shared-epochs', type=int, nargs='+', default=[0, 75, 150])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/table2'))
    add_launcher_arguments(parser)
    parser.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from pretrain.runs.launch import Launcher
    from pretrain.studies.similarity import Similarity

    Similarity(
        args.config,
        args.shared_epochs,
        args.seeds,
        args.work_dir,
        args.cfg_options,
        Launcher(args.gpus, args.jobs),
    ).run()
    print(f'Done: python tools/table.py 2 {args.work_dir} prints the table.')


if __name__ == '__main__':
    run(main)
