"""Does this pretraining transfer better? Pretrain, fine-tune and print Table 5.

python tools/transfer.py --backbone BL=work_dirs/r152_bl/backbone.pth \
    --backbone SD=work_dirs/r152_sd/backbone.pth --seeds 0 1 2 --gpus 8
"""

from pathlib import Path

from pretrain.runs.cli import add_study_arguments, named_path, run, tool_parser

TABLE_5 = ('faster_rcnn_r152_voc07.py', 'deeplabv3_r152_voc12aug.py')


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument(
        '--backbone',
        type=named_path,
        action='append',
        required=True,
        metavar='NAME=FILE',
        help='a backbone file (.pth), a ResNet of another library, or a pretraining config (.py); '
        'the first is the baseline; give the option once per backbone; replicates share a name',
    )
    parser.add_argument(
        '--pretrain-seeds',
        type=int,
        nargs='+',
        default=[0],
        help='seeds of each pretraining config, one run per seed (default: 0)',
    )
    parser.add_argument(
        '--configs',
        type=Path,
        nargs='+',
        default=[Path('configs/downstream', name) for name in TABLE_5],
        help='downstream configs with the depth of the backbones (default: those of Table 5)',
    )
    options = ['--pretrain-options', '--downstream-options']
    add_study_arguments(parser, [0, 1, 2], 'work_dirs/transfer', options)
    args = parser.parse_args()
    from downstream.studies.report_page import write_report
    from downstream.studies.transfer import Transfer
    from pretrain.runs.cluster import launcher_of

    backbones = {}
    for name, path in args.backbone:
        backbones.setdefault(name, []).append(path)
    transfer = Transfer(
        backbones=backbones,
        configs=args.configs,
        seeds=args.seeds,
        work_dir=args.work_dir,
        pretrain_seeds=args.pretrain_seeds,
        launcher=launcher_of(args),
        pretrain_options=args.pretrain_options,
        downstream_options=args.downstream_options,
    )
    page = args.work_dir / 'report.html'
    print(f'\n{transfer.run()}\nThe table is in {args.work_dir / "transfer.md"}.')
    write_report([args.work_dir], page, list(backbones))
    print(f'The report is in {page}.')


if __name__ == '__main__':
    run(main)
