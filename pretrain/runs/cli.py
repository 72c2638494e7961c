"""What the command-line tools have in common."""

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from pretrain.runs.errors import UserError
from pretrain.runs.processes import report_to_torchrun


def run(main: Callable[[], None]) -> None:
    """Call ``main``; what goes wrong is one sentence on stderr and exit code 1.

    A mistake of the user's, a file that cannot be read and a full disk need no more. A fault of
    the program's is shown with its traceback. ``--traceback`` on the command line shows every
    error that way.
    """
    if shown := '--traceback' in sys.argv:
        sys.argv.remove('--traceback')
    _find_home()
    try:
        main()
    except Exception as error:
        expected = isinstance(error, UserError | OSError)
        if shown or not expected:
            traceback.print_exc()
        sentence = _sentence(error) if expected else FAULT
        # Of many processes the one that started them tells it, once.
        sys.exit(1 if report_to_torchrun(sentence) else f'error: {sentence}')


def _find_home() -> None:
    """Give a user without HOME and without an entry in the list of users a folder, which several
    libraries want when they are imported."""
    try:
        Path.home()
    except RuntimeError:
        os.environ['HOME'] = tempfile.mkdtemp(prefix='home-')


FAULT = (
    'this is a fault of the program: please report the command and the lines above as an issue of '
    'this project.'
)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    # A loader worker's error holds its whole traceback; the last line says what happened.
    return str(error) if isinstance(error, UserError) else str(error).strip().splitlines()[-1]


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
