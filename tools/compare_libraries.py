"""Compare with other libraries, by hand: a training step or, given photos, how they are loaded.

python tools/compare_libraries.py [PICTURES] [--config CONFIG] [--cfg-options KEY=VALUE ...]
"""

import argparse
from pathlib import Path

from pretrain.runs.cli import run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pictures', type=Path, nargs='?', help='a folder of full-size photos')
    parser.add_argument(
        '--config', default='configs/pretrain/r152_bl.py', help='whose step is compared'
    )
    parser.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
    parser.add_argument('--rounds', type=int, default=5, help='timings of each step')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows there as well')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from pretrain.studies.benchmark import show
    from pretrain.studies.libraries import loader_rows, step_rows
    from pretrain.studies.steps import machine, write_json

    if args.pictures:
        rows = loader_rows(args.pictures, args.rounds)
    else:
        rows = step_rows(args.config, args.cfg_options, args.rounds)
    print(show(rows))
    if args.json:
        write_json(args.json, machine() | {'rows': rows})


if __name__ == '__main__':
    run(main)
