"""Draw training and testing curves, as in Figure 1, from run records.

python tools/plot_curves.py BL=work_dirs/r152_bl/run.json SD=work_dirs/r152_sd/run.json curves.png
python tools/plot_curves.py BL=RECORDS:resnet20_bl:0 SD=RECORDS:resnet20_sd_t3:0 curves.png

The second form selects a record by config and seed: RECORDS is a folder with run.json files, or a
.jsonl file of tools/collect_records.py.
"""

from pathlib import Path

from pretrain.runs.cli import named_path, run, tool_parser
from pretrain.runs.errors import UserError

SUFFIXES = '.png', '.pdf', '.svg'


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('runs', type=named_path, nargs='+', metavar='NAME=RUN')
    parser.add_argument('out', type=Path, help=f'the image to write: {", ".join(SUFFIXES)}')
    parser.add_argument('--from-epoch', type=int, help='first epoch of the magnified part')
    args = parser.parse_args()
    from pretrain.runs.record import one_record
    from pretrain.studies.curves import COLOURS, error_figure

    runs = dict(args.runs)
    if len(runs) < len(args.runs):
        raise UserError('A name is given twice: give each run its own.')
    if args.out.suffix.lower() not in SUFFIXES:
        raise UserError(f'{args.out} cannot be written as an image: choose {", ".join(SUFFIXES)}.')
    if len(runs) > len(COLOURS):
        raise UserError(f'{len(runs)} runs cannot be told apart: draw at most {len(COLOURS)}.')
    records = {name: one_record(run) for name, run in runs.items()}
    error_figure(records, args.from_epoch).savefig(args.out, dpi=150)
    print(f'The curves are in {args.out}.')


if __name__ == '__main__':
    run(main)
