"""Write the records of finished runs to one file for the repository, one record per line.

python tools/collect_records.py WORK_DIR configs/pretrain/cifar100/results/table3.jsonl
"""

from pathlib import Path

from pretrain.runs.cli import run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('records', type=Path, help='a folder with run.json files, or a .jsonl file')
    parser.add_argument('out', type=Path, help='the .jsonl file to write or replace')
    parser.add_argument('--running', action='store_true', help='include unfinished runs')
    args = parser.parse_args()
    from pretrain.runs.errors import number_of
    from pretrain.runs.tables import collect_records

    count = collect_records(args.records, args.out, args.running)
    print(f'{number_of(count, "records are")} in {args.out}.')


if __name__ == '__main__':
    run(main)
