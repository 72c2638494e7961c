"""Print a table of the paper from run records: paper, ours, delta, mean ± std, n.

python tools/table.py 3 RECORDS [--backbones resnet20]
python tools/table.py 5 RECORDS [--labels BL SD]
python tools/table.py {1,2,4,errors,schedules,teachers} RECORDS

RECORDS is a folder with run.json files, or a .jsonl file of tools/collect_records.py.
"""

from pathlib import Path

from pretrain.runs.cli import run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    tables = ['1', '2', '3', '4', '5', 'errors', 'schedules', 'teachers']
    parser.add_argument(
        'table',
        choices=tables,
        help="1 to 5: the paper's; errors: any pretraining runs; schedules: SD with other "
        'learning-rate schedules; teachers: similarity of teacher and student',
    )
    parser.add_argument('records', type=Path, help='a folder with run.json files, or a .jsonl file')
    parser.add_argument('--backbones', nargs='+', help='backbones of Table 3 (default: all)')
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help='labels that Table 5 shows first, the baseline at their head (default: BL, if any)',
    )
    args = parser.parse_args()
    for option, table in (('backbones', '3'), ('labels', '5')):
        if getattr(args, option) and args.table != table:
            parser.error(f'--{option} is an option of Table {table} alone')
    from downstream.studies.tables import TASKS, in_order, transfer_table
    from pretrain.runs.tables import find_records
    from pretrain.studies.paper_tables import BACKBONES, paper_table

    if args.table == '5':
        records = find_records(args.records, TASKS)
        print(transfer_table(records, in_order(records, args.labels or ())))
    else:
        records = find_records(args.records, running=True)
        print(paper_table(args.table, records, args.backbones or BACKBONES))


if __name__ == '__main__':
    run(main)
