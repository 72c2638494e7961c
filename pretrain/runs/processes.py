"""The processes of a run: which GPUs and cores they use, how they start, how they agree."""

import ctypes
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel

from pretrain.runs.cli import FAULT, LOST
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.saving import EXIT_CODES

T = TypeVar('T')
DEVICES = Path('/dev')
LAUNCHER = 'SNAPSHOT_LAUNCHER_PID'  # environment variable: the process that started the others


def usable_gpus() -> int:
    """The number of GPUs that a run can use; 0 on a machine without any.

    Raises:
        UserError: if there is a GPU on which the installed torch cannot compute.
    """
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1', 'NoDevFiles')
    count = torch.cuda.device_count()
    present = count or (0 if hidden else len(list(DEVICES.glob('nvidia[0-9]*'))))
    if present and not torch.cuda.is_available():
        build = (
            f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'built without CUDA'
        )
        raise UserError(
            f'This machine has {number_of(present, "GPUs")}, but torch {torch.__version__}, '
            f'{build}, cannot use any GPU: check that nvidia-smi works, update the driver or '
            'install another build of torch, or set CUDA_VISIBLE_DEVICES= (empty) to train on the '
            'CPU.'
        )
    for index in range(count):
        major, minor = torch.cuda.get_device_capability(index)
        if not any(_runs_on(arch, major, minor) for arch in torch.cuda.get_arch_list()):
            raise UserError(
                f'torch {torch.__version__} has no kernels for GPU {index}, a '
                f'{torch.cuda.get_device_name(index)} (sm_{major}{minor}), only for '
                f'{", ".join(torch.cuda.get_arch_list())}: install another build of torch, or '
                'leave this GPU out with CUDA_VISIBLE_DEVICES.'
            )
    return count


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Whether code for ``arch``, such as sm_86 or compute_90, runs on a GPU of this capability."""
    if not (found := re.fullmatch(r'(sm|compute)_(\d+)[af]?', arch)):
        return True  # AMD's architectures, such as gfx90a, follow another rule
    kind, version = found.groups()
    ours, theirs = (int(version[:-1]), int(version[-1])), (major, minor)
    return ours <= theirs and (kind == 'compute' or ours[0] == major)


def usable_cores() -> int:
    """The number of CPU cores that this process may use; a cluster's scheduler may limit it."""
    return len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()


def check_processes(count: int) -> None:
    """Raise a UserError unless this node has ``count`` CPU cores and, if it has GPUs, as many."""
    gpus, cores = usable_gpus(), usable_cores()
    if gpus and count > cores:
        raise UserError(
            f'{count} processes, but only {number_of(cores, "CPU cores")} to run them: start '
            'fewer, or on Slurm ask for more cores, as in SRUN_ARGS="--cpus-per-task=64".'
        )
    if not 1 <= count <= (gpus or cores):
        have = number_of(gpus, 'GPUs') if gpus else f'no GPU and {number_of(cores, "CPU cores")}'
        raise UserError(
            f'{count} processes on a machine with {have}: start at most {gpus or cores}.'
        )


def number_of_nodes() -> int:
    """The number of nodes from ``NNODES`` (default: 1); UserError if it is not a number above 0."""
    nodes = os.environ.get('NNODES') or '1'
    if not nodes.isdecimal() or not int(nodes):
        raise UserError(f'NNODES={nodes}: set it to the number of nodes.')
    return int(nodes)


def start_processes(command: Sequence[str], processes: int, nodes: int) -> None:
    """Run a Python command in several processes with torchrun, and wait for them.

    Several nodes find each other by ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. If no port
    is given, a Slurm job derives one from its number, so that two jobs can share a node.

    Args:
        command: arguments of Python, such as ``['-m', 'pretrain.runs.start', 'config.py']``.
        processes: the number of processes on this node.
        nodes: the number of nodes.

    Raises:
        UserError: the error of a process, or if ``MASTER_ADDR`` or ``NODE_RANK`` is missing.
        SystemExit: if a signal stopped the run, or a process failed without an error.
    """
    from torch.distributed import run

    # By default torchrun uses the host's name, which may not resolve on a single node.
    rendezvous = ['--standalone', '--local-addr=127.0.0.1']
    if nodes > 1:
        rank = os.environ.get('NODE_RANK')
        if 'MASTER_ADDR' not in os.environ or rank not in map(str, range(nodes)):
            raise UserError(
                f'NNODES={nodes} needs MASTER_ADDR, the address of node 0, and NODE_RANK, which is '
                f'0 there and up to {nodes - 1} on the others: set both on each node.'
            )
        job = os.environ.get('SLURM_JOB_ID')
        port = os.environ.get('MASTER_PORT') or (20000 + int(job) % 20000 if job else 29500)
        rendezvous = [
            f'--nnodes={nodes}',
            f'--node_rank={rank}',
            f'--master_addr={os.environ["MASTER_ADDR"]}',
            f'--master_port={port}',
        ]
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, usable_cores() // processes)))
    # By default torchrun kills the processes 30 seconds after a signal, while they may still save.
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '300')
    program = ['--no-python', sys.executable, '-u', *command]
    handled = (n for n in (*EXIT_CODES, signal.SIGQUIT) if signal.getsignal(n) != signal.SIG_IGN)
    signals = ','.join(number.name for number in handled)  # nohup ignores SIGHUP
    options = [f'--nproc_per_node={processes}', f'--signals-to-handle={signals}']
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        run.main([*rendezvous, *options, *program])
    except SignalException as stop:
        sys.exit(EXIT_CODES.get(stop.sigval, 128 + stop.sigval))
    except ChildFailedError as error:
        _end_as(error)


def _end_as(error: ChildFailedError) -> NoReturn:
    """End like the process that failed first; the others fail because they lost it."""
    reported = [f for f in error.failures.values() if 'timestamp' in f.error_file_data]
    _, first = error.get_first_failure()
    # The first process has said why without an error, as a stopped run does.
    if not reported and first.exitcode > 0:
        sys.exit(first.exitcode)
    # A signal ended a process. If that was SIGKILL, the others may report errors because of it.
    for rank, failure in error.failures.items():
        if failure.exitcode == -signal.SIGKILL or (failure.exitcode < 0 and not reported):
            raise UserError(
                f'Process {rank} was ended by {signal_in_words(-failure.exitcode)}. --resume '
                'continues from the newest checkpoint.'
            ) from None
    # A process that lost the others may exit before the one that failed first.
    first = min(reported, key=lambda failure: (failure.message in (FAULT, LOST), failure.timestamp))
    raise UserError(first.message) from None


def signal_in_words(number: int) -> str:
    """The name of a signal that ended a process; for SIGKILL also the usual cause.

    Example:
        >>> signal_in_words(9)
        'SIGKILL, which often means that the machine ran out of memory'
    """
    cause = (
        ', which often means that the machine ran out of memory' if number == signal.SIGKILL else ''
    )
    return signal.Signals(number).name + cause


# What a launcher such as torchrun sets for each process.
VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')


def is_of_launcher(name: str) -> bool:
    """Whether an environment variable tells a process of its launcher. One that is left in a shell
    would mislead the runs of a study."""
    return name in (*VARIABLES, 'LOCAL_WORLD_SIZE') or name.startswith('TORCHELASTIC_')


# Loaded here and not after a fork, where a lock of the loader may be held by another thread.
_LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Have Linux send this process SIGTERM when its parent ends for any reason."""
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1
        _LIBC.prctl(pr_set_pdeathsig, signal.SIGTERM)


def end_with_launcher() -> None:
    """Call :func:`end_with_parent` in a process of :func:`start_processes`. If the parent ended
    while this process was still importing, exit as at SIGTERM."""
    end_with_parent()
    parent = str(os.getppid())
    if os.environ.get(LAUNCHER, parent) != parent:
        sys.exit(EXIT_CODES[signal.SIGTERM])


def ddp_settings(find_unused_parameters: bool = False) -> dict:
    """The ``model_wrapper_cfg`` of mmengine: how processes exchange their gradients.

    From torch 2.14 on, all gradients of a bucket are copied at once.
    """
    available = signature(DistributedDataParallel).parameters
    # torch 2.14 warns of the old name in each process.
    sync = 'forward_sync_buffers' if 'forward_sync_buffers' in available else 'broadcast_buffers'
    settings = {'type': 'MMDistributedDataParallel', sync: False, 'gradient_as_bucket_view': True}
    if find_unused_parameters:
        settings['find_unused_parameters'] = True
    if 'batched_grad_copy' in available:
        settings['batched_grad_copy'] = True
    if not torch.cuda.is_available():
        settings['device_ids'] = None
    return settings


class Processes:
    """Lets the processes of a run agree on decisions before they have a process group.

    Args:
        rank: the rank of this process.
        count: the number of processes on all nodes.
        store: where they exchange their decisions; a single process needs none.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: distributed.Store | None = None):
        self.rank = rank
        self.count = count
        self.store = store
        self.decisions = 0

    @classmethod
    def of_launcher(cls) -> 'Processes':
        """The processes started by torchrun or by a launcher that sets the same variables."""
        (store, rank, count) = next(distributed.rendezvous('env://', timeout=timedelta(hours=1)))
        return cls(rank, count, distributed.PrefixStore('start', store))

    def decided_by(self, leader: int, decide: Callable[[], T]) -> T:
        """Return, in each process, what ``decide`` returns in the process of rank ``leader``.

        Every process must call this, and each may name another leader. The result must be
        picklable. A UserError or OSError of a leader is raised in all processes, so that none waits
        in vain.
        """
        if self.count == 1:
            return decide()
        result = error = None
        if self.rank == leader:
            try:
                result = decide()
            except (UserError, OSError) as raised:
                error = raised
        self.decisions += 1
        self.store.set(f'{self.decisions}/{self.rank}', pickle.dumps((result, error)))
        keys = [f'{self.decisions}/{rank}' for rank in range(self.count)]
        everyone = [pickle.loads(self.store.get(key)) for key in keys]
        for _, error in everyone:
            if error is not None:
                raise error
        return everyone[leader][0]
