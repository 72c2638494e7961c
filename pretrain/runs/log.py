"""What a run logs to the screen, to its log file and to the programs that ``--log`` names."""

import logging
import math
import os
import resource
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, all_reduce, master_only
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, LOG_PROCESSORS, RUNNERS
from mmengine.runner import LogProcessor, Runner
from torch import Tensor

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.cli import LOG_BACKENDS
from pretrain.runs.errors import UserError

SHOWN = 16  # files named in an error message


def add_log_backends(config: Config, programs: Sequence[str]) -> None:
    """Make a run also write its curves to ``programs``, which are keys of ``LOG_BACKENDS``.

    Raises:
        UserError: if a program is not installed.
    """
    for program in programs:
        if find_spec(program) is None:
            raise UserError(f'--log {program} needs a package: pip install {program}.')
        backend = dict(type=LOG_BACKENDS[program])
        if program == 'mlflow':  # new versions refuse mmengine's default, a folder
            local = f'sqlite:///{Path(config.work_dir).absolute()}/mlflow.db'
            backend['tracking_uri'] = os.environ.get('MLFLOW_TRACKING_URI', local)
        config.visualizer.vis_backends.append(backend)


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner, but the environment, config and list of hooks go only to the log file, not
    to the screen."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        screen, *_ = logger.handlers
        screen.addFilter(_is_short)
        screen.handleError = partial(_when_not_shown, screen)
        return logger

    @master_only
    def dump_config(self) -> None:
        """As mmengine does, but a power cut or a full disk leaves an earlier copy whole."""
        name = Path(self.cfg.filename).name if self.cfg.filename else f'{self.timestamp}.py'
        write_atomically(Path(self.work_dir) / name, self.cfg.pretty_text.encode())


def _when_not_shown(screen: logging.StreamHandler, record: logging.LogRecord) -> None:
    """Continue without the screen if its reader has ended, such as ``| head``, or ``| tee`` after
    Ctrl-C. The log file has every line."""
    if isinstance(sys.exception(), BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), screen.stream.fileno())
    else:
        logging.StreamHandler.handleError(screen, record)


def _is_short(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    dump = '\n' in message or message.startswith('Exp name: ')
    return record.levelno > logging.INFO or not dump


@LOG_PROCESSORS.register_module()
class ProgressLine(LogProcessor):
    """mmengine's log line with the images per second of all processes. Means never include the
    previous epoch, which may have had no teacher and thus another loss."""

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        whole, self.window_size = self.window_size, min(self.window_size, batch_idx + 1)
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        self.window_size = whole
        if mode == 'train':
            tag['images_per_second'] = rate = runner.cfg.batch_size / tag['time']
            line = line.replace('  time: ', f'  images/s: {rate:.4g}  time: ')
        return tag, line


def _interval(runner: Runner) -> int:
    """The number of iterations between two log lines."""
    (interval,) = (hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook))
    return interval


def flush_is_due(runner: Runner, batch_idx: int) -> bool:
    """Whether the host waits for the device after this iteration: when a log line is due and at the
    end of an epoch."""
    interval = _interval(runner)
    return (batch_idx + 1) % interval == 0 or batch_idx + 1 == len(runner.train_dataloader)


@HOOKS.register_module()
class DeferredLogHook(RuntimeInfoHook):
    """Keeps the losses on the device until a log line is due, and stops a run with a non-finite
    loss before it saves another checkpoint.

    mmengine's RuntimeInfoHook reads each value from the device at each iteration, so that the host
    waits for the GPU. Here one transfer fetches the values of all iterations since the last line,
    as means over all processes. The log buffers, which mmengine copies at each entry and stores in
    every checkpoint, hold only as many values as a log line needs.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.waiting: list[dict[str, Tensor]] = []

    def before_train_epoch(self, runner: Runner) -> None:
        super().before_train_epoch(runner)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # leaves out validation

    def after_train_iter(self, runner: Runner, batch_idx: int, outputs: dict, **_: Any) -> None:
        self.waiting.append({name: value.detach() for name, value in outputs.items()})
        if flush_is_due(runner, batch_idx):
            self.flush(runner, batch_idx)

    def flush(self, runner: Runner, batch_idx: int) -> None:
        """Fetch the values to the host. Every process must call this at the same iteration."""
        if not self.waiting:
            return
        waiting = [value for values in self.waiting for value in values.values()]
        own = torch.stack(waiting).view(len(self.waiting), -1)
        values = own.clone()
        all_reduce(values, op='mean')
        rows = values.tolist()
        column = list(self.waiting[0]).index('loss')
        for number, row in enumerate(rows):
            if not math.isfinite(row[column]):
                begin = batch_idx + 1 - len(rows)
                self._stop(runner, begin + number, row, own[number, column].isfinite().item())
        for name, column in zip(self.waiting[0], zip(*rows, strict=True), strict=True):
            for value in column:
                runner.message_hub.update_scalar(f'train/{name}', value)
        self.waiting.clear()
        # A log line shows the means over a window of training, or over a whole validation.
        longest = max(
            runner.log_processor.window_size, _interval(runner), len(runner.val_dataloader)
        )
        for buffer in runner.message_hub.log_scalars.values():
            buffer.max_length = longest
        # LoggerHook runs after this hook and resets CUDA's peak at each line.
        peak = max(runner.message_hub.get_info('peak_memory_mb', 0.0), peak_memory_mb())
        runner.message_hub.update_info('peak_memory_mb', peak)

    def _stop(self, runner: Runner, batch_idx: int, row: list[float], finite: bool) -> NoReturn:
        """Raise a UserError about a non-finite loss at iteration ``batch_idx`` of the epoch.

        ``row`` has the means over the processes. ``finite`` says whether this process's own loss is
        finite; the error names the images of those processes where it is not.
        """
        values = dict(zip(self.waiting[0], row, strict=True))
        loss = values.pop('loss')
        rates = runner.message_hub.get_scalar('train/lr').data[0]
        rate = rates[batch_idx - runner.iter % len(runner.train_dataloader) - 1]
        parts = ''.join(f', {name} {value:.4g}' for name, value in values.items())
        found = all_gather_object([] if finite else _files(runner, batch_idx))
        names = list(chain.from_iterable(found))
        more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
        raise UserError(
            f'The loss is {loss} at epoch {runner.epoch + 1}, iteration {batch_idx + 1} '
            f'(lr {rate:.4g}{parts}): begin a new run with a lower optim_wrapper.optimizer.lr, or '
            f'check the images of this batch ({", ".join(names[:SHOWN])}{more}). The earlier '
            'checkpoints are kept.'
        )


def _files(runner: Runner, batch_idx: int) -> list[str]:
    """The image files of this process in a batch of the current epoch."""
    loader = runner.train_dataloader
    # A new batch sampler: the loader's own may already hold images of later batches.
    batches = type(loader.batch_sampler)(
        loader.batch_sampler.sampler, loader.batch_sampler.batch_size, loader.drop_last
    )
    positions = next(islice(batches, batch_idx, None))
    if hasattr(loader.dataset, 'file_list'):
        files = loader.dataset.file_list()
        return [files[index] for _, index in positions]
    return [loader.dataset.get_data_info(position)['img_path'] for position in positions]


def peak_memory_mb() -> float:
    """This process's peak memory in MiB: on its GPU since the last reset, or without one in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
