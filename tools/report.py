"""Write one HTML page of many runs: tables, curves, cost, pictures, settings and provenance.

python tools/report.py WORK_DIR ... -o report.html
"""

import argparse
from pathlib import Path

from pretrain.runs.cli import run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'sources', type=Path, nargs='+', help='folders with runs, or .jsonl files of records'
    )
    parser.add_argument('-o', '--out', type=Path, default=Path('report.html'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from downstream.report_page import write_report

    write_report(args.sources, args.out)
    print(f'The report is in {args.out}.')


if __name__ == '__main__':
    run(main)
