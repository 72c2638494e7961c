"""Report what this machine offers for runs, what is missing, and the speed of disk and decoder.

python tools/doctor.py [--data DIR] [--work-dir DIR]
"""

from pathlib import Path

from pretrain.runs.cli import run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('--data', type=Path, default=Path('data'), help='folder of the data sets')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs'), help='folder for runs')
    args = parser.parse_args()
    from downstream.doctor import examine

    for line in examine(args.data, args.work_dir):
        print(line, flush=True)


if __name__ == '__main__':
    run(main)
