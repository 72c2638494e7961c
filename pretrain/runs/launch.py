"""Many runs from one command, in parallel if asked: finished runs are skipped, others resumed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from threading import Lock
from typing import ClassVar, NoReturn, TextIO

from mmengine.config import Config

from pretrain.runs.config import load_config, prepare
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.processes import (
    end_with_parent,
    is_of_launcher,
    signal_in_words,
    usable_cores,
    usable_gpus,
)
from pretrain.runs.record import last_in_percent, read_record
from pretrain.runs.resume import check_finished
from pretrain.runs.saving import EXIT_CODES

# The index of this thread among the ``jobs`` threads, which selects the GPUs of its runs.
_SLOT: ContextVar[int] = ContextVar('slot', default=0)
_STOPPED = {code: number.name for number, code in EXIT_CODES.items()}
_PREPARING = Lock()  # all threads share mmengine's registries
_PLACE = re.compile(r'Epoch\(\w+\) +\[\d+\]\[ *\d+/\d+\]')
_NEWS = re.compile(
    r'(?<= )(?:eta|images/s|loss|\w*error|\S*mAP|mIoU): (?:\d+ days?, )?[\d.:]+(?:e[+-]\d+)?'
)


@dataclass(frozen=True)
class Run:
    """One run of :mod:`pretrain.runs.start`. Progress lines begin with its ``title``."""

    title: str
    config: Path
    work_dir: Path
    options: Sequence[str] = ()  # key=value overrides of the config
    start_from: Path | None = None  # another run's checkpoint


@dataclass(frozen=True)
class Launcher:
    """Starts runs and waits for them.

    Args:
        gpus: processes per run, each with a GPU; 0 for a single process without torchrun.
        jobs: runs at a time. They share the machine's cores evenly. Each run has its own GPUs; with
            ``gpus=0``, runs are spread over the GPUs, and several may share one.

    Raises:
        UserError: if the machine has fewer GPUs than the runs need.
    """

    gpus: int = 0
    jobs: int = 1
    processes: list[subprocess.Popen] = field(default_factory=list, init=False, compare=False)
    stopped: threading.Event = field(default_factory=threading.Event, init=False, compare=False)
    elsewhere: ClassVar[bool] = False  # whether runs use another machine than this one

    def __post_init__(self) -> None:
        there = usable_gpus()
        if there and self.gpus * self.jobs > there:
            raise UserError(
                f'{number_of(self.jobs, "runs")} at a time with {number_of(self.gpus, "GPUs")} '
                f'each, but this machine has {number_of(there, "GPUs")}: lower --jobs or --gpus.'
            )
        pipes = Path(os.environ.get('CUDA_MPS_PIPE_DIRECTORY', '/tmp/nvidia-mps'))
        if there and self.jobs > there and not (pipes / 'control').exists():
            print(
                f'{self.jobs} runs share {number_of(there, "GPUs")}, where their kernels take '
                'turns: to let them run at the same time, stop this command and start NVIDIA MPS '
                'first (nvidia-cuda-mps-control -d).',
                file=sys.stderr,
            )

    def finish(self, *stages: Sequence[Run]) -> list[list[dict]]:
        """Finish all runs of a stage before the next stage begins, with numbered titles; return the
        records of each stage. Raises the errors of :meth:`run`."""
        total = sum(map(len, stages))
        tasks = (
            partial(self.run, replace(run, title=f'[{number}/{total}] {run.title}'))
            for number, run in enumerate(chain(*stages), 1)
        )
        return [self.each([*islice(tasks, len(stage))]) for stage in stages]

    def each(self, tasks: Sequence[Callable[[], dict]]) -> list[dict]:
        """Call the tasks, ``jobs`` at a time, and return their results in order. After the first
        failure, no further task begins; the error is raised when the running ones have ended. A
        signal of ``EXIT_CODES`` stops the runs, and then this process."""
        slots, failed = count(), threading.Event()

        def call(task: Callable[[], dict]) -> dict:
            try:
                # The pool often begins the next task before it learns of a failure.
                return {} if failed.is_set() or self.stopped.is_set() else task()
            except Exception as error:
                known = failed.is_set() or self.stopped.is_set()
                if self.jobs > 1 and not known:  # it is raised when the others have ended
                    print(f'{error}\nNo further run begins.', file=sys.stderr, flush=True)
                failed.set()
                raise

        with (
            _at_signals(self._stop),
            ThreadPoolExecutor(self.jobs, initializer=lambda: _SLOT.set(next(slots))) as pool,
        ):
            futures = [pool.submit(call, task) for task in tasks]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _stop(self, number: int, _: object) -> NoReturn:
        """Stop the runs; this process exits when they have saved."""
        self.stopped.set()
        for process in self.processes:
            process.terminate()
        print(
            f'\nStopped by {signal.Signals(number).name}. The runs save and end; run the same '
            'command again to continue.',
            file=sys.stderr,
        )
        sys.exit(EXIT_CODES[number])

    def run(self, run: Run) -> dict:
        """Start or resume a run unless it is finished; return its record.

        Raises:
            UserError: if the run fails, or its folder holds a run with other settings.
        """
        record = read_record(run.work_dir / 'run.json')
        if record is None or record['status'] != 'finished':
            self._launch(run)
            record = read_record(run.work_dir / 'run.json')
            if record is None or record['status'] != 'finished':
                raise UserError(
                    f'{run.title} ended, but {run.work_dir}/run.json does not say that it '
                    'finished: run the same command again.'
                )
        # Also after a run: the config may have been edited since the study checked it.
        with _PREPARING:
            config = self.prepare(load_config(run.config, run.options))
        other_machine = ['precision'] if self.elsewhere else []
        check_finished(run.work_dir, record, config.identity.to_dict(), other_machine)
        result = f'{record["paper"]["metric"]} {last_in_percent(record):.2f} %'
        _say(f'{run.title}: done in {record["wall_seconds"]:,.0f} s, {result}')
        return record

    def prepare(self, config: Config) -> Config:
        """Check a config and fill it in for the processes of a run."""
        return prepare(config, self.gpus or 1, self.elsewhere)

    def _environment(self) -> dict[str, str]:
        """The environment of this thread's runs, with their share of the cores and GPUs."""
        environment = {k: v for k, v in os.environ.items() if not is_of_launcher(k)}
        threads = max(1, usable_cores() // (self.jobs * max(1, self.gpus)))
        environment.setdefault('OMP_NUM_THREADS', str(threads))
        if (there := usable_gpus()) > 1:
            given = environment.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(there))))
            each = max(1, self.gpus)
            first = _SLOT.get() * each % there
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(given.split(',')[first : first + each])
        return environment

    def _launch(self, run: Run) -> None:
        log = run.work_dir / 'train.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, '-m', 'pretrain.runs.start', str(run.config)]
        command += ['--work-dir', str(run.work_dir), '--resume']
        if self.gpus:
            command += ['--gpus', str(self.gpus)]
        if run.start_from:
            command += ['--start-from', str(run.start_from)]
        command += ['--cfg-options', *run.options]
        _say(f'{run.title}: log in {log}')
        code, lines = self._execute(run, command, log)
        if code:
            # On a cluster the lines may be an earlier job's, which ended with another code.
            reason = next((line for line in reversed(lines) if line.startswith('error: ')), None)
            if reason and code == 1:
                what = f'failed: {reason.removeprefix("error: ")}'
            elif code < 0:
                what = (
                    f'was ended by {signal_in_words(-code)}. Run the same command again to resume.'
                )
            elif code in _STOPPED:
                what = f'was stopped by {_STOPPED[code]}. Run the same command again to resume.'
            else:
                what = f'failed with exit code {code}: see the end of {log}.'
            raise UserError(f'{run.title} {what}')

    def _execute(self, run: Run, command: Sequence[str], log: Path) -> tuple[int, Sequence[str]]:
        """Run a command, append its output to ``log``, and return its exit code and last lines."""
        with _named(log), log.open('a', encoding='utf-8') as file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=self._environment(),
                preexec_fn=end_with_parent,
            )
            self.processes.append(process)
            if self.stopped.is_set():  # by a signal while the process was starting
                process.terminate()
            lines = _follow(process, file, run.title)
        return process.returncode, lines


@contextmanager
def _at_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle the signals of ``EXIT_CODES``, except ignored ones, such as SIGHUP under nohup."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    for number in before:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give errors of writing an open file its name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _say(line: str) -> None:
    """Print a line in a single write, so that parallel runs do not mix their lines."""
    print(f'{line}\n', end='', flush=True)


def _follow(process: subprocess.Popen, log: TextIO, title: str) -> list[str]:
    """Copy a run's output to its log, print its progress every 15 s, and return its last lines."""
    tail = deque(maxlen=50)
    shown, full = time.monotonic(), None
    try:
        for line in process.stdout:
            try:
                log.write(line)
                log.flush()
            except OSError as error:  # the run may still save
                full = error
            tail.append(line.rstrip())
            if time.monotonic() - shown > 15 and (news := news_of(line)):
                _say(f'{title}: {news}')
                shown = time.monotonic()
        process.wait()
    finally:
        process.terminate()
    if full:
        raise full
    return list(tail)


def news_of(line: str) -> str | None:
    """The progress, speed and metrics in a line of a run's log; None if it shows no progress.

    Example:
        >>> news_of('INFO - Epoch(train) [1][10/62]  lr: 3e-2  eta: 0:04:46  time: 1  loss: 4.1')
        'Epoch(train) [1][10/62]  eta: 0:04:46  loss: 4.1'
    """
    place = _PLACE.search(line)
    return '  '.join([place[0], *_NEWS.findall(line)]) if place else None
