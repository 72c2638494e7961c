"""Runs as cluster jobs, one job per run, through submitit; Slurm may preempt and requeue them."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.config import literal
from pretrain.runs.errors import UserError, lines_of
from pretrain.runs.launch import Launcher, Run
from pretrain.runs.saving import EXIT_CODES

if TYPE_CHECKING:
    import submitit

WARNED, STOPPED = EXIT_CODES[signal.SIGUSR1], EXIT_CODES[signal.SIGTERM]
# Seconds. After SIGTERM, Slurm kills a job that it stops: at a preemption only after a grace time.
# A job that ended before would not be requeued.
KILL_WAIT = 900


class Job:
    """Runs a command and appends its output to a log.

    Before the job reaches its time limit or is preempted, submitit calls :meth:`checkpoint` and has
    Slurm requeue the job that it returns.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = command
        self.log = log
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run the command, restart it each time a warning signal stops it, and return its last exit
        code."""
        while True:
            with self.log.open('a') as file:
                self.process = subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT)
            code = self.process.wait()
            if code == STOPPED:
                time.sleep(KILL_WAIT)
            if code != WARNED:
                return code

    def checkpoint(self) -> 'submitit.helpers.DelayedSubmission':
        """Wait until the run has saved and ended; return the job that resumes it."""
        import submitit

        if self.process and self.process.returncode is None:  # else it has not begun, or has ended
            if os.environ.get('SUBMITIT_EXECUTOR') != 'slurm':  # which warns all processes of a job
                self.process.send_signal(signal.SIGUSR1)
            # A signal handler calls this during wait(); a second wait() would deadlock on its lock.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.command, self.log))


_SUBMITTING = threading.RLock()
# Options of submitit and of Slurm by which a job has several tasks.
TASKS = ('nodes', 'tasks_per_node', 'ntasks_per_node', 'ntasks')


@dataclass(frozen=True)
class ClusterLauncher(Launcher):
    """Submits a job for each run and waits for it. If this process ends, the jobs continue; the
    same command waits for those that have not ended. :meth:`run` raises a UserError if Slurm is
    missing or an option is unknown.

    Args:
        gpus: processes per run, and GPUs and CPU cores to request; 0 for a single process.
        jobs: jobs in the queue at a time.
        cluster: 'slurm'.
        options: arguments of submitit's ``update_parameters``, such as ``timeout_min``,
            ``cpus_per_task`` and ``slurm_partition``.

    Raises:
        UserError: if submitit is missing, or the options ask for several tasks per run.
    """

    jobs: int = 1000
    cluster: str = 'slurm'
    options: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # Slurm warns all processes of a job by this signal: the run stops at its next iteration.
        os.environ.setdefault('SUBMITIT_PREEMPT_SIGNAL', 'USR1')
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise UserError('--cluster needs submitit: pip install submitit.') from error
        for name, value in self.options.items():
            if name.removeprefix('slurm_') in TASKS and value != 1:
                raise UserError(
                    f'--cluster-options {name}={value}: each task would start the whole run. Leave '
                    'it out, and give the number of processes as --gpus.'
                )

    def _stop(self, number: int, _: object) -> NoReturn:
        """End this process; the jobs continue."""
        print(
            f'\nStopped by {signal.Signals(number).name}. The jobs continue; run the same command '
            'again to wait for them.',
            file=sys.stderr,
            flush=True,
        )
        self.stopped.set()
        _SUBMITTING.acquire(timeout=60)  # a job that is not noted would be submitted again
        os._exit(EXIT_CODES[number])  # sys.exit would wait for the threads, which wait for the jobs

    def _execute(self, run: Run, command: Sequence[str], log: Path) -> tuple[int, Sequence[str]]:
        import submitit

        job = self._job(run, Job(command, log))
        try:
            code = job.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as end:
            raise UserError(
                f'{run.title}: job {job.job_id} ended without a result, for example because it was '
                f'cancelled (state {job.state}): see {job.paths.stderr}, and run the same command '
                'again to continue.'
            ) from end
        return code, log.read_text(errors='replace').splitlines()[-50:]

    def _job(self, run: Run, do: Job) -> 'submitit.Job':
        """Return the run's job if it is still queued or running; otherwise submit a new one."""
        import submitit

        folder = run.work_dir / 'jobs'
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / 'last.txt'
        if self.cluster == 'slurm' and note.exists():
            number, _, command = note.read_text().partition('\n')
            job = submitit.SlurmJob(folder, number)
            if not job.done(force_check=True):
                if command not in ('', shlex.join(do.command)):  # '': an older note
                    raise UserError(
                        f'{run.title}: job {number} trains it with other options ({command}): '
                        'repeat the command with those, or cancel the job first.'
                    )
                print(f'{run.title}: waiting for job {job.job_id}', flush=True)
                return job
        asked = {'gpus_per_node': self.gpus, 'cpus_per_task': self.gpus} if self.gpus else {}
        try:
            settings = {'name': run.config.stem, 'timeout_min': 24 * 60} | asked | self.options
            executor = submitit.AutoExecutor(folder, self.cluster, slurm_max_num_timeout=1000)
            executor.update_parameters(**settings)
            with _SUBMITTING:
                if self.stopped.is_set():
                    raise UserError(f'{run.title} was stopped before its job was submitted.')
                job = executor.submit(do)
                write_atomically(note, f'{job.job_id}\n{shlex.join(do.command)}'.encode())
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f'Cannot submit {run.title}: {lines_of(error)[0]}') from error
        print(f'{run.title}: job {job.job_id}', flush=True)
        return job


def launcher_of(args: argparse.Namespace) -> Launcher:
    """The launcher that the arguments of :func:`pretrain.runs.cli.add_study_arguments` select.

    Raises:
        UserError: if ``--cluster-options`` lacks ``--cluster``, or as the launcher does.
    """
    jobs = {} if args.jobs is None else {'jobs': args.jobs}
    if args.cluster is None:
        if args.cluster_options:
            raise UserError('--cluster-options needs --cluster slurm.')
        return Launcher(args.gpus, **jobs)
    if wrong := [option for option in args.cluster_options if '=' not in option]:
        raise UserError(f'Option {wrong[0]}: write key=value.')
    pairs = (option.partition('=') for option in args.cluster_options)
    options = {key: literal(value) for key, _, value in pairs}
    return ClusterLauncher(args.gpus, **jobs, cluster=args.cluster, options=options)
