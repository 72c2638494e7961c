"""Draw training and testing curves, as in Figure 1, from run records.

python tools/plot_curves.py BL=work_dirs/r152_bl/run.json SD=work_dirs/r152_sd/run.json curves.png
"""

import argparse
from pathlib import Path

from pretrain.runs.cli import named_path, run
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from pretrain.studies.curves import COLOURS, plot_curves


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=named_path, nargs='+', metavar='NAME=run.json')
    parser.add_argument('out', type=Path, help='the picture to write: .png, .pdf or .svg')
    parser.add_argument('--from-epoch', type=int, help='where the magnified part begins')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if len(args.runs) > len(COLOURS):
        raise UserError(f'{len(args.runs)} runs: at most {len(COLOURS)} can be told apart.')
    records = {}
    for name, path in args.runs:
        records[name] = read_record(path)
        if records[name] is None:
            raise UserError(f'No record {path}: give the run.json of a run.')
    plot_curves(records, args.out, args.from_epoch)
    print(f'The curves are in {args.out}.')


if __name__ == '__main__':
    run(main)
