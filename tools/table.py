"""Print a table of the paper from run records: paper, ours, delta, mean ± std, n.

python tools/table.py 3 RECORDS [--backbones resnet20]
python tools/table.py {1,2,4,5,errors,schedules,teachers} RECORDS

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
    args = parser.parse_args()
    from downstream.studies.tables import TASKS, transfer_table
    from pretrain.runs.tables import find_records
    from pretrain.studies.paper_tables import BACKBONES, paper_table

    if args.table == '5':
        print(transfer_table(find_records(args.records, TASKS)))
    else:
        records = find_records(args.records, running=True)
        print(paper_table(args.table, records, args.backbones or BACKBONES))


if __name__ == '__main__':
    run(main)
