"""Print a table of the paper from run records: paper, ours, delta, mean ± std, n.

python tools/table.py 3 RECORDS [--backbones resnet20]
python tools/table.py {1,2,4,5,errors,schedules,teachers} RECORDS

RECORDS is a folder with run.json files, or a .jsonl file of tools/collect_records.py.
"""

import argparse
from pathlib import Path

from pretrain.runs.cli import run

CONFIGS = Path('configs/pretrain')
CIFAR = CONFIGS / 'cifar100'
ROWS = ('bl', 'se', 'sd_t2', 'sd_t3')
METHODS = ('bl', 'kd', 'fitnet', 'net2deeper', 'net2wider', 'fsp', 'label_refinery', 'ban')
METHODS += ('tolerant', 'sd_t2', 'sd_t3', 'symmetric')
SCHEDULES = ('bl', 'sd_t2', 'sd_linear', 'sd_one_cycle', 'sd_rates', 'sd_unequal')
TABLE_4 = 'r101_bl', 'r101_se', 'r101_sd', 'r152_bl', 'r152_se', 'r152_sd'
TABLE_4 += 'ser101_bl', 'ser101_sd', 'ser152_sd'
BACKBONES = ('resnet20', 'resnet32', 'resnet56', 'resnet110', 'densenet100', 'densenet190')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = ['1', '2', '3', '4', '5', 'errors', 'schedules', 'teachers']
    parser.add_argument('table', choices=tables)
    parser.add_argument('records', type=Path, help='a folder with run.json files, or a .jsonl file')
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, default=BACKBONES)
    args = parser.parse_args()
    from downstream.tables import TASKS, transfer_table
    from pretrain.runs.config import load_config
    from pretrain.runs.tables import find_records
    from pretrain.studies.tables import (
        errors_table,
        table_1,
        table_2,
        table_3,
        table_4,
        teachers_table,
    )

    if args.table == '5':
        print(transfer_table(find_records(args.records, TASKS)))
        return
    records = find_records(args.records)
    if args.table == '3':
        paths = [CIFAR / f'{b}_{row}.py' for b in args.backbones for row in ROWS]
        print(table_3(records, [load_config(path) for path in paths]))
    elif args.table == '4':
        print(table_4(records, [load_config(CONFIGS / f'{row}.py') for row in TABLE_4]))
    elif args.table == 'errors':
        print(errors_table(records))
    elif args.table in ('1', 'schedules'):
        names = METHODS if args.table == '1' else SCHEDULES
        print(table_1(records, [load_config(CIFAR / f'resnet20_{name}.py') for name in names]))
    elif args.table == 'teachers':
        print(teachers_table(records))
    else:
        print(table_2(records))


if __name__ == '__main__':
    run(main)
