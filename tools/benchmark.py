"""Measure speed, as ratios within one run, on whatever device is there.

python tools/benchmark.py all --minutes 60 --json FILE                     # what matters most first
python tools/benchmark.py step     [CONFIG] [--cfg-options KEY=VALUE ...]  # BL and SD steps
python tools/benchmark.py runner   [CONFIG] [--cfg-options KEY=VALUE ...]  # a run's whole loop
python tools/benchmark.py launches [CONFIG] [--cfg-options KEY=VALUE ...]  # kernels and waits
python tools/benchmark.py finetune CONFIG   [--cfg-options KEY=VALUE ...]  # a run of mmdet or mmseg
python tools/benchmark.py show FILE [FILE ...]                             # what --json wrote
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from pretrain.runs.cli import run

R152 = 'configs/pretrain/r152_sd.py'
RESNET20 = 'configs/pretrain/cifar100/resnet20'
# What ``all`` measures, in this order.
PARTS = {
    'launches, ResNet-152': f'launches {R152}',
    'step, ResNet-152': f'step {R152}',
    'run, ResNet-152': f'runner {R152}',
    'run, ResNet-20': f'runner {RESNET20}_bl.py',
    'step, ResNet-20': f'step {RESNET20}_sd_t3.py',
    'launches, ResNet-20': f'launches {RESNET20}_sd_t3.py',
    'step, ResNet-152 at 32 (GPU)': f'step {R152} --cfg-options batch_size=32',
    'run, DeepLabv3': 'finetune configs/downstream/deeplabv3_r152_voc12aug.py',
    'run, Faster R-CNN': 'finetune configs/downstream/faster_rcnn_r152_voc07.py',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest='part', required=True)
    for name in ('all', 'step', 'runner', 'launches', 'finetune'):
        part = parts.add_parser(name)
        if name == 'all':
            part.add_argument('--minutes', type=float, required=True)
        else:
            nargs = None if name == 'finetune' else '?'
            part.add_argument('config', type=Path, nargs=nargs, default=R152)
            part.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
        part.add_argument('--rounds', type=int, default=5, help='timings of each step')
        part.add_argument('--json', type=Path, required=name == 'all', help='write the rows there')
    part = parts.add_parser('show')
    part.add_argument('files', type=Path, nargs='+', help='written by --json')
    part.add_argument('--goals', action='store_true', help='only the rows that have one')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from pretrain.studies.benchmark import runner_rows, show, step_rows
    from pretrain.studies.launches import launch_rows
    from pretrain.studies.steps import machine, run_all, write_json

    if args.part == 'show':
        contents = [json.loads(path.read_text()) for path in args.files]
        rows = [line for c in contents for line in (c if isinstance(c, list) else c['rows'])]
        print(show([line for line in rows if line['goal'] is not None or not args.goals]))
        return
    if args.part == 'all':
        this = shlex.join([sys.executable, __file__])
        more = f'--rounds {args.rounds} --json "$JSON"'
        commands = {name: f'{this} {part} {more}' for name, part in PARTS.items()}
        run_all(commands, args.minutes, args.json)
        return
    if args.part == 'finetune':
        from downstream.benchmark import finetune_rows as measure  # loads mmdet and mmseg
    else:
        measure = {'step': step_rows, 'runner': runner_rows, 'launches': launch_rows}[args.part]
    rows = measure(args.config, args.cfg_options, args.rounds)
    print(', '.join(f'{key} {value}' for key, value in machine().items()), show(rows), sep='\n\n')
    if args.json:
        write_json(args.json, machine() | {'rows': rows})


if __name__ == '__main__':
    run(main)
