"""The processes of a run: the GPUs they may use, how they are started, and how they agree."""

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

from pretrain.runs.errors import UserError, number_of
from pretrain.runs.saving import EXIT_CODES

T = TypeVar('T')
DEVICES = Path('/dev')
LAUNCHER = 'SNAPSHOT_LAUNCHER_PID'  # the variable that tells processes who started them


def usable_gpus() -> int:
    """The number of GPUs that a run can use; 0 on a machine without any.

    Raises:
        UserError: if there are GPUs, but torch cannot compute on them.
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
            f'{build}, cannot compute there: see whether nvidia-smi works, update the driver or '
            'install another torch; or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU.'
        )
    for index in range(count):
        major, minor = torch.cuda.get_device_capability(index)
        if not any(_runs_on(arch, major, minor) for arch in torch.cuda.get_arch_list()):
            raise UserError(
                f'GPU {index}, a {torch.cuda.get_device_name(index)} (sm_{major}{minor}), is none '
                f'that torch {torch.__version__} has kernels for '
                f'({", ".join(torch.cuda.get_arch_list())}): install another torch, or leave this '
                'GPU out with CUDA_VISIBLE_DEVICES.'
            )
    return count


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Whether code for ``arch``, such as sm_86 or compute_90, runs on a GPU."""
    if not (found := re.fullmatch(r'(sm|compute)_(\d+)[af]?', arch)):
        return True  # AMD's, such as gfx90a, follow another rule
    kind, version = found.groups()
    ours, theirs = (int(version[:-1]), int(version[-1])), (major, minor)
    return ours <= theirs and (kind == 'compute' or ours[0] == major)


def usable_cores() -> int:
    """CPU cores that this process may run on, which a cluster's scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()


def check_processes(count: int) -> None:
    """Each process needs a GPU of its own or, on a machine without any, a CPU core."""
    gpus, cores = usable_gpus(), usable_cores()
    if gpus and count > cores:
        raise UserError(
            f'{count} processes, but this one may use only {number_of(cores, "CPU cores")}: on '
            'Slurm, ask for more, as in SRUN_ARGS="--cpus-per-task=64".'
        )
    if not 1 <= count <= (gpus or cores):
        have = number_of(gpus, 'GPUs') if gpus else f'no GPU and {number_of(cores, "CPU cores")}'
        raise UserError(
            f'{count} processes on a machine with {have}: ask for {gpus or cores} or fewer.'
        )


def number_of_nodes() -> int:
    """That of ``NNODES``, 1 without it; else UserError."""
    nodes = os.environ.get('NNODES') or '1'
    if not nodes.isdecimal() or not int(nodes):
        raise UserError(f'NNODES={nodes}: set it to the number of nodes.')
    return int(nodes)


def start_processes(command: Sequence[str], processes: int, nodes: int) -> None:
    """Run a Python command in several processes with torchrun, and wait for them.

    Several ``nodes`` find each other by ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Without
    a port, jobs of Slurm take one by their number, so that two can share a node.

    Args:
        command: arguments of Python, such as ``['-m', 'pretrain.runs.start', 'config.py']``.
        processes: on this node.
        nodes: their number.

    Raises:
        UserError: what a process raised, or that ``MASTER_ADDR`` or ``NODE_RANK`` is missing.
    """
    from torch.distributed import run

    # The host's name, which torchrun takes otherwise, may be unknown on one node.
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
    # torchrun would kill what still validates or saves 30 seconds after a signal.
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '300')
    program = ['--no-python', sys.executable, '-u', *command]
    signals = ','.join(number.name for number in (*EXIT_CODES, signal.SIGQUIT))
    options = [f'--nproc_per_node={processes}', f'--signals-to-handle={signals}']
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        run.main([*rendezvous, *options, *program])
    except SignalException as stop:
        sys.exit(EXIT_CODES.get(stop.sigval, 128 + stop.sigval))
    except ChildFailedError as error:
        _end_as(error)


def _end_as(error: ChildFailedError) -> NoReturn:
    """End as the process that failed first. The others fail as well, since they miss it."""
    reported = [f for f in error.failures.values() if 'timestamp' in f.error_file_data]
    _, first = error.get_first_failure()
    # The first has said why without an error, as a stopped run does.
    if not reported and first.exitcode > 0:
        sys.exit(first.exitcode)
    # A signal ended a process. Those that miss a killed one may report errors.
    for rank, failure in error.failures.items():
        if failure.exitcode == -signal.SIGKILL or (failure.exitcode < 0 and not reported):
            raise UserError(
                f'Process {rank} was ended by {signal_in_words(-failure.exitcode)}. --resume '
                'goes on from the newest checkpoint.'
            ) from None
    # The error that was reported first.
    raise UserError(min(reported, key=lambda failure: failure.timestamp).message) from None


def signal_in_words(number: int) -> str:
    """The name of a signal that ended a process, and the usual cause.

    Example:
        >>> signal_in_words(9)
        'SIGKILL, which often means that the memory was too small'
    """
    cause = ', which often means that the memory was too small' if number == signal.SIGKILL else ''
    return signal.Signals(number).name + cause


def end_with_parent() -> None:
    """Send this process SIGTERM when the process that started it ends, however (Linux only)."""
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def end_with_launcher() -> None:
    """:func:`end_with_parent` in a process of :func:`start_processes`, which may have ended while
    this one was still importing: then exit as if the signal had come."""
    end_with_parent()
    parent = str(os.getppid())
    if os.environ.get(LAUNCHER, parent) != parent:
        sys.exit(EXIT_CODES[signal.SIGTERM])


def ddp_settings(find_unused_parameters: bool = False) -> dict:
    """How processes exchange their gradients: mmengine's ``model_wrapper_cfg``.

    A bucket takes all its gradients in one copy where torch can do that (from 2.14 on).
    """
    available = signature(DistributedDataParallel).parameters
    # 2.14 warns of the old name, in each process.
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
        rank: of this process.
        count: of all processes on all nodes.
        store: where they leave what they decide; a single process needs none.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: distributed.Store | None = None):
        self.rank = rank
        self.count = count
        self.store = store
        self.decisions = 0

    @classmethod
    def of_launcher(cls) -> 'Processes':
        """Those that torchrun, or a launcher that sets the same variables, has started."""
        (store, rank, count) = next(distributed.rendezvous('env://', timeout=timedelta(hours=1)))
        return cls(rank, count, distributed.PrefixStore('start', store))

    def decided_by(self, leader: int, decide: Callable[[], T]) -> T:
        """What ``decide`` returns, which must be picklable, in the process of rank ``leader``.

        Every process must call this, with any leader. A UserError or OSError is raised in all, so
        that none waits for the others in vain.
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
