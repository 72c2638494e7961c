"""Measure speed on this machine's device, as ratios between loops measured in the same call.

python tools/benchmark.py all --minutes 60 --json FILE                   # most important first
python tools/benchmark.py step      [CONFIG] [--cfg-options KEY=VALUE ...]  # BL and SD steps
python tools/benchmark.py runner    [CONFIG] [--cfg-options KEY=VALUE ...]  # a run's whole loop
python tools/benchmark.py kernels   [CONFIG] [--cfg-options KEY=VALUE ...]  # kernels and waits
python tools/benchmark.py saving    [CONFIG] [--cfg-options KEY=VALUE ...]  # a checkpoint's cost
python tools/benchmark.py libraries [CONFIG] [--cfg-options KEY=VALUE ...]  # other libraries' step
python tools/benchmark.py loader    FOLDER                                  # and loading 128 photos
python tools/benchmark.py finetune  CONFIG   [--cfg-options KEY=VALUE ...]  # mmdet's or mmseg's run
python tools/benchmark.py show FILE [FILE ...]                              # files of --json
"""

import sys
from pathlib import Path

from pretrain.runs.cli import add_options, positive, run, tool_parser

DEFAULTS = dict.fromkeys(('step', 'kernels', 'saving'), 'configs/pretrain/r152_sd.py')
DEFAULTS |= dict.fromkeys(('runner', 'libraries'), 'configs/pretrain/r152_bl.py')
# What ``all`` measures, in order.
ALL = [
    'step',
    'runner',
    'runner configs/pretrain/cifar100/resnet20_bl.py',
    'step configs/pretrain/cifar100/resnet20_sd_t3.py',
    'kernels',
    'kernels configs/pretrain/cifar100/resnet20_sd_t3.py',
    'finetune configs/downstream/deeplabv3_r152_voc12aug.py',
    'finetune configs/downstream/faster_rcnn_r152_voc07.py',
    'saving',
    'libraries',
]


def main() -> None:
    parser = tool_parser(__doc__)
    parts = parser.add_subparsers(dest='part', required=True)
    for name in ('step', 'runner', 'kernels', 'saving', 'libraries', 'loader', 'finetune'):
        part = parts.add_parser(name)
        if name == 'loader':
            part.add_argument('photos', type=Path, help='a folder of full-size photos')
        else:
            default = DEFAULTS.get(name)
            part.add_argument('config', type=Path, nargs='?' if default else None, default=default)
            add_options(part)
        part.add_argument(
            '--rounds', type=positive, default=5, help='number of timings per step (default: 5)'
        )
        part.add_argument('--json', type=Path, metavar='FILE', help='also write the rows to FILE')
    part = parts.add_parser('all')
    part.add_argument('--minutes', type=positive, required=True, help='time limit for all parts')
    part.add_argument('--json', type=Path, required=True, metavar='FILE')
    part = parts.add_parser('show')
    part.add_argument('files', type=Path, nargs='+', help='files that --json wrote')
    part.add_argument('--goals', action='store_true', help='show only the rows with a goal')
    args = parser.parse_args()
    from pretrain.studies import benchmark

    if args.part == 'show':
        rows = [line for path in args.files for line in benchmark.read_rows(path)]
        goals = [line for line in rows if line['goal'] is not None]
        print(benchmark.show(goals if args.goals else rows))
        return
    if args.part == 'all':
        commands = [[sys.executable, __file__, *part.split()] for part in ALL]
        benchmark.report_all(commands, args.minutes, args.json)
        return
    if args.part == 'loader':
        from pretrain.studies.libraries import loader_rows

        benchmark.report(loader_rows(args.photos, args.rounds), args.json)
        return
    if args.part == 'kernels':
        from pretrain.studies.kernels import kernel_rows as measure
    elif args.part == 'libraries':
        from pretrain.studies.libraries import step_rows as measure
    elif args.part == 'finetune':
        from downstream.studies.benchmark import finetune_rows as measure  # loads mmdet and mmseg
    else:
        measure = getattr(benchmark, f'{args.part}_rows')
    benchmark.report(measure(args.config, args.cfg_options, args.rounds), args.json)


if __name__ == '__main__':
    run(main)
