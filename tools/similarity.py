"""Train the teachers and students of Table 2, which share more or fewer epochs (Section 3.3.2).

python tools/similarity.py --work-dir work_dirs/table2    # DenseNet-100, 300 epochs, 2 seeds
"""

from pathlib import Path

from pretrain.runs.cli import add_study_arguments, run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    default = Path('configs/pretrain/cifar100/densenet100_bl.py')
    parser.add_argument('--config', type=Path, default=default, help='config of a baseline')
    parser.add_argument(
        '--shared-epochs',
        type=int,
        nargs='+',
        default=[0, 75, 150],
        help='epochs that student and teacher share with the source (default: 0 75 150)',
    )
    add_study_arguments(parser, [0, 1], 'work_dirs/table2', ['--cfg-options'])
    args = parser.parse_args()
    from pretrain.runs.cluster import launcher_of
    from pretrain.studies.similarity import Similarity

    launcher, options = launcher_of(args), args.cfg_options
    Similarity(args.config, args.shared_epochs, args.seeds, args.work_dir, options, launcher).run()
    print(f'Done. To print the table: python tools/table.py 2 {args.work_dir}')


if __name__ == '__main__':
    run(main)
