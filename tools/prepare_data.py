"""Prepare a data set once, before the runs on it.

python tools/prepare_data.py imagenet --root DIR --out DIR --max-side N [--processes P]
"""

import argparse
from pathlib import Path

from pretrain.cli import run
from pretrain.datasets.shrink import shrink_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='dataset', required=True)
    imagenet = commands.add_parser('imagenet', help='a copy with smaller pictures')
    imagenet.add_argument('--root', type=Path, required=True, help='holds train/ and val/')
    imagenet.add_argument('--out', type=Path, required=True, help='gets the copy')
    imagenet.add_argument(
        '--max-side',
        type=int,
        required=True,
        metavar='N',
        help='most pixels of the shorter side: shrink what has more',
    )
    imagenet.add_argument(
        '--processes', type=int, metavar='P', help='(default: as many as there are cores)'
    )
    args = parser.parse_args()
    shrink_folder(args.root, args.out, args.max_side, args.processes)


if __name__ == '__main__':
    run(main)
