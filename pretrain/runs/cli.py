"""Code that the command-line tools share. Nothing here imports torch or mmengine, so that
``--help`` answers at once; a tool imports what it needs after it has parsed its arguments."""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pretrain.runs.errors import UserError, lines_of
from pretrain.runs.packages import missing_packages

# The choices of ``--log``, named after the packages that they need, and mmengine's backends.
LOG_BACKENDS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
    'mlflow': 'MLflowVisBackend',
}


TRACEBACK = 'SNAPSHOT_TRACEBACK'  # environment variable


def run(main: Callable[[], None]) -> None:
    """Call ``main``. An error prints one sentence on stderr and exits with code 1.

    A bug in the program also prints its traceback. With ``--traceback`` on the command line,
    every error does: user errors, unreadable files, a full disk, too little memory, Ctrl-C.
    Ctrl-C exits with code 130.
    """
    if '--traceback' in sys.argv:
        sys.argv.remove('--traceback')
        os.environ[TRACEBACK] = '1'  # the processes and jobs that this one starts inherit it
    shown = TRACEBACK in os.environ
    if isinstance(sys.stdout, TextIOWrapper):  # its encoding may lack characters of a path
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        _ensure_home()
        _shorten_tmpdir()
        main()
    except KeyboardInterrupt:
        if shown:
            traceback.print_exc()
        print('\nStopped by Ctrl-C.', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (missing := missing_packages()):
            names = ' '.join(missing)
            error = UserError(f'Not installed: {", ".join(missing)}. Run: pip install {names}')
        sentence = _sentence(error)
        if shown or sentence == FAULT:
            traceback.print_exc()
        # In a distributed run, torchrun prints the sentence once for all processes.
        sys.exit(1 if report_to_torchrun(sentence) else f'error: {sentence}')


def _ensure_home() -> None:
    """Give a user without a home directory a temporary one: several libraries need it on import."""
    try:
        Path.home()
    except RuntimeError:
        os.environ['HOME'] = tempfile.mkdtemp(prefix='home-')


FAULT = (
    'this is a bug in the program: please report the command and the lines above as an issue of '
    'this project.'
)


def _shorten_tmpdir() -> None:
    """Put temporary files into /tmp if the socket paths of loader workers would exceed the 107
    bytes that Linux allows. Python appends 32 bytes to the path of the folder."""
    if len(tempfile.gettempdirb()) > 107 - 32:
        os.environ['TMPDIR'] = tempfile.tempdir = '/tmp'


LOST = (
    'The connection to another process of the run was lost: that process has ended, or the network '
    'failed. --resume continues from the newest checkpoint.'
)
# Patterns of the errors of torch and Python that are no fault of the program, and what to do.
_LIMITS = {
    r'Too many open files|ancdata': (
        'Too many files are open: raise the limit (ulimit -n 65536), or lower '
        'train_dataloader.num_workers.'
    ),
    r'shared memory ?(object|\(shm\))|</torch_|DataLoader worker .*(Killed|Bus error|exited)': (
        'The loader workers probably ran out of memory, or of shared memory (/dev/shm): lower '
        'train_dataloader.num_workers, or enlarge /dev/shm (docker run --shm-size=8g). --resume '
        'continues from the newest checkpoint.'
    ),
    r'MemoryError|DefaultCPUAllocator|CUDA error: out of memory': (
        'There is too little memory: raise micro_batches, or lower batch_size or the size of the '
        'images.'
    ),
    r'DistBackendError|gloo.*Connection (closed|reset) by peer': LOST,
    r'EADDRINUSE': (
        'Another program uses the port through which the processes of the run connect: set '
        'MASTER_PORT to a free port, the same on all nodes.'
    ),
}


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    text = f'{type(error).__name__}: {error}'
    if limit := next((words for reason, words in _LIMITS.items() if re.search(reason, text)), None):
        return limit
    if not isinstance(error, OSError):
        return FAULT
    if error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    # A loader worker's error holds its whole traceback; the last line says what happened.
    return lines_of(error)[-1]


def report_to_torchrun(sentence: str) -> bool:
    """Pass an error to the torchrun that started this process, which prints it; False if none."""
    if not (path := os.environ.get('TORCHELASTIC_ERROR_FILE')):
        return False
    Path(path).write_text(json.dumps({'message': sentence, 'timestamp': int(time.time())}))
    return True


def tool_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose description is the first line of a tool's docstring."""
    return argparse.ArgumentParser(description=doc.splitlines()[0])


def named_path(text: str) -> tuple[str, Path]:
    """The argparse type of ``NAME=FILE``."""
    name, equals, path = text.partition('=')
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f'{text}: write NAME=FILE')
    return name, Path(path)


def positive(text: str) -> int:
    """The argparse type of a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text}: give a whole number above 0')
    return int(text)


_FACTS = (
    'arch',
    'depth',
    'stem',
    'style',
    'channel_order',
    'mean',
    'std',
    'seed',
    'top1_error',
    'feature_scale',
)


def written(out: str, provenance: Mapping[str, Any]) -> str:
    """One line about an exported file, with the facts by which a user chooses it.

    Example:
        >>> written('r18.pth', {'format': 1, 'arch': 'ResNet', 'depth': 18, 'seed': 0})
        'Wrote r18.pth: arch ResNet, depth 18, seed 0'
    """
    facts = [f'{key} {provenance[key]}' for key in _FACTS if provenance.get(key) is not None]
    return f'Wrote {out}: {", ".join(facts)}'


def add_study_arguments(
    parser: argparse.ArgumentParser, seeds: list[int], work_dir: str, options: Sequence[str]
) -> None:
    """Add the arguments of all tools that start many runs. ``options`` are the names of arguments
    for :func:`add_options`. :func:`pretrain.runs.cluster.launcher_of` reads ``--gpus``, ``--jobs``
    and the cluster's."""
    shown = ' '.join(map(str, seeds))
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=seeds, help=f'one run per seed (default: {shown})'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path(work_dir),
        help=f'folder for the runs (default: {work_dir})',
    )
    parser.add_argument(
        '--gpus', type=positive, default=0, help='processes per run (default: one, on a GPU if any)'
    )
    parser.add_argument(
        '--jobs', type=positive, help='runs at a time (default: 1; on a cluster: all)'
    )
    parser.add_argument('--cluster', choices=['slurm'], help='submit each run as a job')
    parser.add_argument(
        '--cluster-options',
        action='extend',
        nargs='*',
        default=[],
        metavar='KEY=VALUE',
        help='options of submitit, such as slurm_partition=gpu timeout_min=720 cpus_per_task=16',
    )
    for name in options:
        add_options(parser, name)


def add_options(parser: argparse.ArgumentParser, name: str = '--cfg-options') -> None:
    """Add an argument ``name`` for overrides of a config."""
    runs = {'--pretrain-options': ' for pretraining', '--downstream-options': ' for fine-tuning'}
    parser.add_argument(
        name,
        action='extend',  # a script and its caller may both give the option
        nargs='*',
        default=[],
        metavar='KEY=VALUE',
        help=f'keys of the config to override{runs.get(name, "")}, such as batch_size=64',
    )


def training_arguments() -> argparse.Namespace:
    """The arguments of ``tools/train.py``."""
    parser = argparse.ArgumentParser(
        description='Train a config of either stage: pretraining or downstream.'
    )
    parser.add_argument('config', help='config file, such as configs/pretrain/r18_bl.py')
    parser.add_argument(
        '--work-dir',
        help='folder of the run (default: the folder of the config if it holds the run.json of a '
        'run, else work_dirs/<config name>)',
    )
    parser.add_argument('--resume', action='store_true', help='continue from the last checkpoint')
    parser.add_argument(
        '--start-from', metavar='CHECKPOINT', help="begin a new run from another run's checkpoint"
    )
    parser.add_argument(
        '--accept-change',
        action='append',
        default=[],
        metavar='KEY',
        help='resume although this setting, or the data, has changed; the record notes the change',
    )
    parser.add_argument(
        '--log',
        action='append',
        default=[],
        choices=LOG_BACKENDS,
        help='also write the curves to this program; may be repeated',
    )
    add_options(parser)
    parser.add_argument(
        '--gpus',
        type=positive,
        metavar='N',
        help='processes to start, each with a GPU or a core',
    )
    parser.add_argument(
        '--check',
        type=positive,
        nargs='?',
        const=0,
        metavar='N',
        help='only check that N processes (default: --gpus, or 1) can run the config',
    )
    return parser.parse_args()
