"""Write one HTML page about many runs: tables, curves, cost, pictures, settings and provenance.

python tools/report.py WORK_DIR ... [-o report.html] [--labels BL SD]
"""

from pathlib import Path

from pretrain.runs.cli import run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument(
        'sources', type=Path, nargs='+', help='folders with runs, or .jsonl files of records'
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        default=(),
        metavar='LABEL',
        help='labels that the transfer table shows first, the baseline at their head (default: BL)',
    )
    parser.add_argument('-o', '--out', type=Path, default=Path('report.html'))
    args = parser.parse_args()
    from downstream.studies.report_page import write_report

    write_report(args.sources, args.out, args.labels)
    print(f'The report is in {args.out}.')


if __name__ == '__main__':
    run(main)
