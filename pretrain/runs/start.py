"""How a run starts: its config is checked and filled in, then it begins anew or resumes."""

import argparse
import errno
import fcntl
import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from pretrain.runs.checkpoint import install
from pretrain.runs.cli import run, training_arguments
from pretrain.runs.config import load_config, prepare, stage_of
from pretrain.runs.errors import UserError
from pretrain.runs.identity import differences, in_words
from pretrain.runs.log import add_log_backends
from pretrain.runs.precision import device_without_bf16, forbid_tf32
from pretrain.runs.processes import (
    VARIABLES,
    Processes,
    check_processes,
    ddp_settings,
    end_with_launcher,
    number_of_nodes,
    start_processes,
    usable_gpus,
)
from pretrain.runs.resume import choose_start, holds_run
from pretrain.runs.saving import stop_on_signals


def is_launched() -> bool:
    """Whether a launcher started this process as one of the run's processes.

    torchrun and ``tools/dist_train.sh`` set all variables that a process needs. Other launchers set
    only some of them, which may also remain in a shell.
    """
    return all(os.environ.get(name) for name in VARIABLES)


def check_alone() -> None:
    """Raise a UserError if the environment tells of several processes but lacks ``VARIABLES``."""
    missing = ', '.join(name for name in VARIABLES if not os.environ.get(name))
    for name in ('WORLD_SIZE', 'OMPI_COMM_WORLD_SIZE'):
        if (count := os.environ.get(name) or '1') != '1':
            raise UserError(
                f'The environment has {name}={count} but lacks {missing}: start several processes '
                'with tools/dist_train.sh or torchrun (in each pod of a PyTorchJob: '
                'NNODES=$WORLD_SIZE NODE_RANK=$RANK tools/dist_train.sh CONFIG GPUS); for a single '
                f'process, unset {name}.'
            )


def check_writable(work_dir: Path) -> None:
    """Raise a UserError if a run cannot be written to ``work_dir``, which need not exist yet."""
    # lexists also finds a broken link, in whose place no folder can be made.
    place = next(path for path in (work_dir, *work_dir.absolute().parents) if os.path.lexists(path))
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(
            f'No run can be written to {work_dir} ({place}: {error.strerror}): choose another '
            '--work-dir.'
        ) from error


def claim(work_dir: Path) -> TextIO:
    """Create and lock a run's folder for this process.

    The operating system releases the lock when the returned file is closed or the process ends for
    any reason. Loader workers do not inherit it. If the file system has no locks, a warning is
    printed.

    Raises:
        UserError: if another process holds the lock; the message names that process.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    file = (work_dir / '.lock').open('a+')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print(
                f'warning: {work_dir} cannot be locked ({error.strerror}): do not start a second '
                'run there.',
                file=sys.stderr,
            )
            return file
        file.seek(0)
        raise UserError(
            f'{work_dir} is in use by {file.read()}: wait until that run ends, stop it, or choose '
            'another --work-dir.'
        ) from error
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file


def check_node(first: dict, ours: dict) -> None:
    """Raise a UserError if this node's identity ``ours`` differs from the ``first`` node's: through
    other images or, with ``precision='auto'``, another kind of GPU."""
    if found := differences(first, ours):
        raise UserError(
            f'{socket.gethostname()} differs from the first node: '
            f'{in_words(found, "that one has", "but this one has")}. Give all nodes the same '
            "data and, where their GPUs differ, precision='float32'."
        )


def _usual_work_dir(config: Path) -> Path:
    """The default folder of a run: the config's if it holds a run's record (the config is then that
    run's copy), else ``work_dirs/<config name>``."""
    of_a_run = (config.parent / 'run.json').exists()
    return config.parent if of_a_run else Path('work_dirs') / config.stem


def _report_precision(config: Config) -> None:
    if config.precision == 'auto' and (without := device_without_bf16()):
        print(f"precision='auto' means float32 here: {without} has no bfloat16.", file=sys.stderr)


def _say_possible(args: argparse.Namespace) -> None:
    print(f'{args.config}: the settings and the data allow this run.')


def main() -> None:
    start(training_arguments())


def start(args: argparse.Namespace) -> None:
    """Start a run with the arguments of :func:`pretrain.runs.cli.training_arguments`."""
    launched = is_launched()
    there = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('WORLD_SIZE')
    if launched and args.gpus and str(args.gpus) != there:
        raise UserError(
            f'--gpus {args.gpus}, but {", ".join(VARIABLES)} are set, as by a launcher of {there}: '
            'unset them, or leave --gpus out.'
        )
    config = load_config(args.config, args.cfg_options)
    work_dir = Path(args.work_dir or _usual_work_dir(Path(args.config)))
    if not launched:
        anew = args.resume and not (args.start_from or holds_run(work_dir))
        more = ', which holds no run to resume: a new one begins' if anew else ''
        print(f'{args.config}: the folder of the run is {work_dir}{more}.', flush=True)
    config.work_dir = str(work_dir)
    check_writable(work_dir)
    add_log_backends(config, args.log)
    count = args.gpus if args.check is None else args.check or args.gpus or 1
    if not launched and count:
        _launch(config, args, count)
    else:
        _train(config, args, launched)


def _launch(config: Config, args: argparse.Namespace, count: int) -> None:
    """Start ``count`` processes, each of which calls :func:`start`; with ``--check``, only check.

    Everything is checked here first, so that a mistake is reported once and not by each process.
    """
    check_processes(count)
    nodes = number_of_nodes()
    _report_precision(config)
    config = prepare(config, count * nodes)
    unfinished = choose_start(config, args)
    if unfinished and args.check is not None:
        _say_possible(args)
    elif unfinished:
        start_processes(['-m', 'pretrain.runs.start', *sys.argv[1:]], count, nodes)


def _train(config: Config, args: argparse.Namespace, launched: bool) -> None:
    """Train in this process, alone or as one of several that a launcher started."""
    usable_gpus()
    if launched:
        end_with_launcher()
        processes = Processes.of_launcher()
        first_of_node = processes.rank - int(os.environ['LOCAL_RANK'])
    else:
        check_alone()
        processes, first_of_node = Processes(), 0
        _report_precision(config)
    # Once per node, because it may check a million files.
    config = processes.decided_by(first_of_node, partial(prepare, config, processes.count))
    first = processes.decided_by(0, config.identity.to_dict)
    # Each process checks its own node; an error in one ends all.
    processes.decided_by(processes.rank, partial(check_node, first, config.identity.to_dict()))
    if args.check is not None:
        if choose_start(config, args) and processes.rank == 0:
            _say_possible(args)
        return
    install()
    getattr(stage_of(config), 'install', lambda: None)()
    forbid_tf32()
    with ExitStack() as held:

        def begin() -> tuple[bool, str | None, bool, list[dict]]:
            held.enter_context(claim(Path(config.work_dir)))
            unfinished = choose_start(config, args)
            return unfinished, config.load_from, config.resume, config.accepted_changes

        # Rank 0 decides for all, since nodes may see different states of a shared folder.
        unfinished, *chosen = processes.decided_by(0, begin)
        if not unfinished:
            return
        config.load_from, config.resume, config.accepted_changes = chosen
        several = processes.count > 1  # torchrun may start a single one, which needs no DDP
        config.launcher = 'pytorch' if several else 'none'
        config.model_wrapper_cfg = ddp_settings(config.get('find_unused_parameters', False))
        if several and not torch.cuda.is_available():
            # mmengine would require a CUDA device to start the process group.
            torch.distributed.init_process_group('gloo')
        config.runner_type = config.get('runner_type', 'QuietRunner')
        stop_on_signals()
        RUNNERS.build(config).train()


if __name__ == '__main__':
    run(main)
