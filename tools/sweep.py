"""Train several configs with several seeds. If you stop it, run it again: it resumes.

python tools/sweep.py configs/pretrain/cifar100/resnet20_{bl,se,sd_t2,sd_t3}.py \
    --seeds 0 1 2 --jobs 4
"""

from pathlib import Path

from pretrain.runs.cli import add_study_arguments, run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('configs', type=Path, nargs='+', help='pretraining configs')
    add_study_arguments(parser, [0, 1, 2], 'work_dirs/sweep', ['--cfg-options'])
    args = parser.parse_args()
    from pretrain.runs.cluster import launcher_of
    from pretrain.studies.sweep import Sweep

    launcher = launcher_of(args)
    Sweep(args.configs, args.seeds, args.work_dir, args.cfg_options, launcher).run()
    print(f'Done. To print the table: python tools/table.py errors {args.work_dir}')


if __name__ == '__main__':
    run(main)
