"""Stop a run at any iteration, and resume it there bit for bit."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from pretrain.runs.checkpoint import checkpoints, is_whole, progress, tensor_mismatch
from pretrain.runs.config import walk
from pretrain.runs.errors import UserError, number_of

# The signals that stop a run, and its exit codes: 128 + the signal's number, but 75 (EX_TEMPFAIL,
# "try again") for SIGUSR1, by which a scheduler warns that the time is almost up.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 75}
# The largest share of a run's time that checkpoints at the ends of epochs may take.
SHARE = 0.01
_received: list[int] = []


def stop_on_signals() -> None:
    """From now on, a signal of :data:`EXIT_CODES` stops the run at its next iteration."""
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _receive)
    os.register_at_fork(after_in_child=_ignore_signals)


def restore_signals() -> None:
    """Undo :func:`stop_on_signals`, for a run that has nothing to save."""
    for number in EXIT_CODES:
        if signal.getsignal(number) is _receive:
            signal.signal(number, signal.SIG_DFL)


def _receive(number: int, _: object) -> None:
    _received.append(number)


def _ignore_signals() -> None:
    """In a forked worker: end at SIGTERM, which pools send, and ignore the run's other signals."""
    for number in EXIT_CODES:
        if signal.getsignal(number) is _receive:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _start_worker(first: Callable[[int], object] | None, worker: int) -> None:
    """Call the loader's own ``worker_init_fn`` ``first``; then end only at the parent's SIGTERM.

    A scheduler sends SIGTERM to all processes of a run. If a worker ended then, torch would raise
    an error in the run before it has saved.
    """
    if first:
        first(worker)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_on_sigterm_of_parent, daemon=True).start()


def _end_on_sigterm_of_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def iterations_done(runner: Runner) -> int:
    """The number of finished iterations of the current epoch; 0 between two epochs."""
    return runner.iter - runner.epoch * len(runner.train_dataloader)


def save(runner: Runner, name: str, done: dict[str, int]) -> Path:
    """Write a checkpoint ``name`` to the run's folder, verify it and return its path. Every process
    must call this. ``done`` has the numbers of finished epochs (``epoch``) and iterations
    (``iter``).

    Raises:
        UserError: in the main process, if a value is not finite or the file is damaged.
        OSError: in the main process, if the file cannot be written.
        SystemExit: in the other processes, if the main process raises one of these.
    """
    path = Path(runner.work_dir) / name
    failure = None
    try:
        runner.save_checkpoint(runner.work_dir, name, meta=done)
        if is_main_process() and not is_whole(path):
            raise UserError(f'{path} cannot be read back as it was written: check the disk.')
    except (UserError, OSError) as error:
        failure = error
    failed = [failure is not None]
    broadcast_object_list(failed)  # all processes wait until the file is written
    if failed[0]:
        raise failure or SystemExit(1)
    runner.logger.info(f'Saved {path}.')
    return path


def unwrap(runner: Runner) -> nn.Module:
    """The model without its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class _Requests:
    """Combines the requests of a ``group`` of processes. A request has two numbers, the signal to
    stop by and whether to save; the answer is the maximum of each over the processes.

    The processes exchange requests at each iteration and read the answer at the next one, so that
    none waits and all stop at the same iteration. Without a group, the own request is the answer.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None) -> None:
        self.group = group
        self.pending: tuple[torch.distributed.Work, Tensor] | None = None

    def exchange(self, request: list[int], wait: bool = False) -> list[int]:
        """Send a request; return the answer to the previous requests, or with ``wait`` to these."""
        if self.group is None:
            return request
        before = self.settle()
        requests = torch.tensor(request)
        largest = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(requests, largest, self.group, async_op=True)
        self.pending = work, requests
        return self.settle() if wait else before

    def settle(self) -> list[int]:
        """Wait for the pending answer and return it; zeros if none is pending."""
        if self.pending is None:
            return [0, 0]
        work, requests = self.pending
        self.pending = None
        work.wait()
        return requests.tolist()


@HOOKS.register_module()
class SaveHook(Hook):
    """Saves checkpoints: ``epoch_<e>.pth`` at the end of epoch e, and ``epoch_<e>_iter_<i>.pth``
    after i iterations of the next when ``minutes`` have passed since the last one, or to stop.

    All processes stop at the same iteration, and wait while a checkpoint is written. The end of an
    epoch, except the last, is skipped if the last checkpoint took more than ``SHARE`` of the time
    since then and ``minutes`` have not passed.

    The two newest checkpoints are kept; an older one is deleted once the new one is verified. If a
    value is not finite, the run ends with an error instead of a checkpoint.

    Args:
        minutes: the longest time between two checkpoints; a validation may prolong it.
    """

    # After the other hooks, so that a checkpoint includes what they do at the same point.
    priority = 'LOWEST'

    def __init__(self, minutes: float = 15.0) -> None:
        self.minutes = minutes
        self.buffers: list[dict[str, Tensor]] | None = None  # per process; only within an epoch
        self.unsaved = False  # whether the model was trained since the last checkpoint
        self.spent = 0.0  # seconds that the last checkpoint took

    def before_run(self, runner: Runner) -> None:
        for loader in (runner.train_dataloader, runner.val_dataloader):
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        several = get_world_size() > 1
        self.group = torch.distributed.new_group(backend='gloo') if several else None
        self.requests = _Requests(self.group)
        # The number of validation batches that every process has.
        self.val_batches = _least(len(runner.val_dataloader), self.group)
        self.newest = Path(runner.cfg.load_from or '').name
        self.saved_at = time.monotonic()
        if is_main_process():
            for part in Path(runner.work_dir).glob('.*.part'):
                part.unlink()

    def before_train_epoch(self, runner: Runner) -> None:
        if self.buffers is not None and iterations_done(runner):
            _restore(unwrap(runner), self.buffers[get_rank()])
        self.buffers = None

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        self.unsaved = True
        stop, due = self.requests.exchange(self._request())
        if not (stop or due):
            return
        self.requests.settle()
        runner.call_hook('flush', batch_idx=batch_idx)  # pending values of the log and the record
        self.buffers = self._gather(_changing_buffers(unwrap(runner)))
        done = dict(epoch=runner.epoch, iter=runner.iter + 1)
        self._save(runner, f'epoch_{runner.epoch}_iter_{batch_idx + 1}.pth', done)
        self.buffers = None
        if stop:
            self._stop(runner, stop)

    def after_train_epoch(self, runner: Runner) -> None:
        epoch = runner.epoch + 1
        self.requests.settle()
        stop, due = self.requests.exchange(self._request(end_of_epoch=True), wait=True)
        if stop or due or epoch == runner.max_epochs:
            self._save(runner, f'epoch_{epoch}.pth', dict(epoch=epoch, iter=runner.iter))
        if stop:
            self._stop(runner, stop)

    def after_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        if self.unsaved or batch_idx >= self.val_batches:
            return
        stop, _ = self.requests.exchange([self._request()[0], 0])
        if stop:  # there is nothing to save: the resumed run repeats the validation
            self._stop(runner, stop)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        length, meta = len(runner.train_dataloader), checkpoint['meta']
        if (theirs := meta.get('epoch_length', length)) != length:  # old checkpoints lack it
            raise UserError(
                f'{runner.cfg.load_from} is of a run with {number_of(theirs, "iterations")} per '
                f'epoch, but this run has {length}, and the schedule counts iterations: use the '
                'same number of images and processes, or begin a new run in another --work-dir.'
            )
        # mmengine would only log it. The other hooks have run: the teachers fit.
        wanted = unwrap(runner).state_dict()
        if mismatch := tensor_mismatch(checkpoint['state_dict'], wanted, 'the model'):
            raise UserError(
                f'{runner.cfg.load_from} is of another network: {mismatch}. Go back to its '
                'settings, or begin a new run in another --work-dir.'
            )
        self.buffers = checkpoint.get('process_buffers')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['epoch_length'] = len(runner.train_dataloader)
        if self.buffers is not None:
            checkpoint['process_buffers'] = self.buffers
        notes = ('meta', 'message_hub')
        for name, value in walk({k: part for k, part in checkpoint.items() if k not in notes}):
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise UserError(
                    f'{name} is not finite after iteration {checkpoint["meta"]["iter"]}: begin '
                    'a new run with a lower optim_wrapper.optimizer.lr, or check the data. The '
                    'earlier checkpoints are kept.'
                )

    def _request(self, end_of_epoch: bool = False) -> list[int]:
        """The signal to stop by, or 0, and whether to save, which the main process decides."""
        since = time.monotonic() - self.saved_at
        due = since > 60 * self.minutes or (end_of_epoch and self.spent <= SHARE * since)
        return [max(_received, default=0), int(is_main_process() and due)]

    def _gather(self, buffers: dict[str, Tensor]) -> list[dict[str, Tensor]] | None:
        if self.group is None:
            return [buffers]
        gathered = [None] * get_world_size() if is_main_process() else None
        torch.distributed.gather_object(buffers, gathered, group=self.group)
        return gathered

    def _save(self, runner: Runner, name: str, done: dict[str, int]) -> None:
        begun = time.monotonic()
        path = save(runner, name, done)
        self.spent = time.monotonic() - begun
        if is_main_process():
            for old in checkpoints(path.parent):
                if progress(old) < progress(path) and old.name != self.newest:
                    old.unlink()
        self.newest, self.saved_at, self.unsaved = name, time.monotonic(), False

    def _stop(self, runner: Runner, number: int) -> NoReturn:
        runner.logger.info(
            f'Stopped by {signal.Signals(number).name}: the same command with --resume continues '
            'from here.'
        )
        raise SystemExit(EXIT_CODES[number])


def _least(count: int, group: torch.distributed.ProcessGroup | None) -> int:
    """The least ``count`` of a group's processes; without a group, that of this process."""
    counts = torch.tensor(count)
    if group is not None:
        torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MIN, group)
    return int(counts)


def _changing_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that training changes (running statistics and sums), on the CPU."""
    return {
        f'{path}.{name}': buffer.cpu()
        for path, module in model.named_modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    }


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    device = next(model.parameters()).device
    for path, value in buffers.items():
        owner, _, name = path.rpartition('.')
        setattr(model.get_submodule(owner), name, value.to(device))
