"""What the command-line tools have in common."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pretrain.runs.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a user's mistake is one sentence on stderr and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f'error: {error}')


def named_path(text: str) -> tuple[str, Path]:
    """argparse's type of ``NAME=FILE``."""
    name, equals, path = text.partition('=')
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f'{text}: write NAME=FILE')
    return name, Path(path)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """``--gpus`` and ``--jobs`` of :class:`pretrain.runs.launch.Launcher`."""
    parser.add_argument(
        '--gpus', type=int, default=0, help='processes a run (default: no launcher)'
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
