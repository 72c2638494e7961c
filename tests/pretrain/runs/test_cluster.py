"""Runs as jobs: by submitit's executors without a cluster, and by commands that act as Slurm's."""

import json
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from pretrain.runs import cluster, launch
from pretrain.runs.cluster import ClusterLauncher, Job, launcher_of
from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT
from pretrain.runs.launch import Launcher, Run
from pretrain.runs.saving import EXIT_CODES


def arguments(**more: object) -> Namespace:
    return Namespace(**{'gpus': 0, 'jobs': None, 'cluster': None, 'cluster_options': []} | more)


def test_one_machine_stays_as_it_is() -> None:
    assert launcher_of(arguments()) == Launcher(0, 1)
    assert launcher_of(arguments(jobs=2)) == Launcher(0, 2)
    with pytest.raises(UserError, match='needs --cluster slurm'):
        launcher_of(arguments(cluster_options=['timeout_min=5']))


def test_arguments_of_a_cluster() -> None:
    options = ['timeout_min=5', 'slurm_partition=gpu']
    launcher = launcher_of(arguments(cluster='slurm', gpus=2, cluster_options=options))
    assert isinstance(launcher, ClusterLauncher)
    assert launcher.options == {'timeout_min': 5, 'slurm_partition': 'gpu'}
    assert launcher.jobs > 100
    with pytest.raises(UserError, match='Option slurm_partition: write key=value'):
        launcher_of(arguments(cluster='slurm', cluster_options=['slurm_partition']))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / 'run').mkdir()
    return Run('title', Path('configs/x.py'), tmp_path / 'run')


def execute(launcher: Launcher, run: Run, code: str) -> tuple[int, list[str]]:
    command = [sys.executable, '-u', '-c', code]
    return launcher._execute(run, command, run.work_dir / 'train.log')


def test_a_job_gives_its_exit_code_and_last_lines(run: Run) -> None:
    launcher = ClusterLauncher(cluster='debug')
    assert execute(launcher, run, 'print("one")') == (0, ['one'])
    code = 'import os; os.write(1, bytes([255, 10]))'  # the name of a file, perhaps
    assert execute(launcher, run, code) == (0, ['one', '\ufffd'])
    (run.work_dir / 'train.log').write_text('one\n')
    assert execute(launcher, run, 'exit("error: no luck")') == (1, ['one', 'error: no luck'])


def test_a_job_that_was_warned_goes_on_by_itself(run: Run) -> None:
    marker = run.work_dir / 'begun'
    code = f'from pathlib import Path; m = Path({str(marker)!r}); print(m.exists()); '
    code += 'again = m.exists(); m.touch(); exit(0 if again else 75)'
    assert execute(ClusterLauncher(cluster='debug'), run, code) == (0, ['False', 'True'])


@pytest.mark.parametrize('text', ['', '\n', 'no room\nat all'])
def test_why_there_is_no_job(
    text: str, run: Run, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr('submitit.AutoExecutor.submit', submit)
    with pytest.raises(UserError, match=r'Cannot submit title: (no room|RuntimeError)$'):
        execute(ClusterLauncher(), run, 'pass')


def test_an_unknown_option_is_named(run: Run, slurm: Path) -> None:
    launcher = ClusterLauncher(options={'slurm_partitoin': 'gpu'})
    with pytest.raises(UserError, match=r'Cannot submit title: .*partitoin'):
        execute(launcher, run, 'pass')


@pytest.mark.parametrize('name', ['nodes', 'tasks_per_node', 'slurm_ntasks_per_node'])
def test_several_tasks_per_run_are_refused(name: str) -> None:
    ClusterLauncher(options={name: 1})
    with pytest.raises(UserError, match=f'{name}=2: each task would start the whole run'):
        ClusterLauncher(options={name: 2})


def test_a_job_that_is_warned_before_or_after_its_run_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('pretrain.runs.cluster.KILL_WAIT', 0)
    job = Job(['bash', '-c', 'exit 143'], tmp_path / 'log')
    assert job.checkpoint().function.command == job.command
    assert job() == 143
    assert job.checkpoint().function.command == job.command


# A Slurm of one machine: a job is a script in a session of its own, under the number of its folder.
COMMANDS = {
    'sbatch': """
echo 1 > "$SLURM_FAKE/id"; cp "$1" "$SLURM_FAKE/script"
SLURM_JOB_ID=1 setsid bash "$SLURM_FAKE/script" > /dev/null 2>&1 &
echo "Submitted batch job 1"
""",
    'srun': """
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
echo $$ >> "$SLURM_FAKE/pids"; exec "$@"
""",
    'scontrol': """
echo "$@" >> "$SLURM_FAKE/requeued"
setsid bash "$SLURM_FAKE/script" > /dev/null 2>&1 &
""",
    'sacct': """
echo 'JobID|State|NodeList'; echo "1|$(cat "$SLURM_FAKE/state" 2> /dev/null || echo RUNNING)|here"
""",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / 'slurm'
    folder.mkdir()
    for name, script in COMMANDS.items():
        (folder / name).write_text(f'#!/bin/bash\n{script}')
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('SLURM_FAKE', str(folder))
    return folder


def test_a_stop_waits_until_a_submitted_job_is_noted(
    run: Run, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would submit it again."""
    submitting, ended = threading.Event(), threading.Event()
    noted = []

    def submit(*_: object) -> SimpleNamespace:
        submitting.set()
        ended.wait(0.3)  # a stop in between would end the process
        return SimpleNamespace(job_id='1')

    def end(_: int) -> None:
        noted.append((run.work_dir / 'jobs/last.txt').exists())
        cluster._SUBMITTING.release()  # since this process goes on
        ended.set()

    monkeypatch.setattr('submitit.AutoExecutor.submit', submit)
    monkeypatch.setattr(os, '_exit', end)
    launcher = ClusterLauncher()
    do = Job(['command'], run.work_dir / 'log')
    thread = threading.Thread(target=launcher._job, args=(run, do))
    thread.start()
    submitting.wait()
    launcher._stop(signal.SIGTERM, None)
    thread.join()
    assert noted == [True]
    other = Run('other', run.config, run.work_dir.with_name('other'))
    with pytest.raises(UserError, match='other was stopped before its job was submitted'):
        launcher._job(other, do)


RUN = """
import signal, sys, time
from pathlib import Path
begun = Path({begun!r})
if begun.exists():
    print('resumed')
    sys.exit(0)
signal.signal(signal.SIGUSR1, lambda *_: (print('saved'), sys.exit(75)))
begun.touch()
while True:
    time.sleep(0.1)
"""


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.1)


def test_a_warned_job_is_requeued_and_a_command_started_again_waits_for_it(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture
) -> None:
    begun = run.work_dir / 'begun'
    code = RUN.format(begun=str(begun))
    results = []

    def command() -> None:
        results.append(execute(ClusterLauncher(), run, code))

    first, second = threading.Thread(target=command), threading.Thread(target=command)
    first.start()
    wait_for(begun)
    with pytest.raises(UserError, match='title: job 1 trains it with other options'):
        execute(ClusterLauncher(), run, 'other')
    second.start()  # as if the first command had been stopped and given again
    os.killpg(os.getsid(int((slurm / 'pids').read_text())), signal.SIGUSR1)  # time is up
    first.join(120)
    second.join(120)
    assert results == [(0, ['saved', 'resumed'])] * 2
    assert (slurm / 'requeued').read_text() == 'requeue 1\n'
    printed = capsys.readouterr().out
    assert printed.count('title: job 1\n') == printed.count('title: waiting for job 1\n') == 1
    script = (slurm / 'script').read_text()
    assert '#SBATCH --signal=USR1@90' in script
    assert '#SBATCH --time=1440' in script


@pytest.mark.parametrize('number', EXIT_CODES)
def test_a_signal_ends_the_command_and_not_its_jobs(
    number: int, usual_signals: None, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """At once: its threads wait for the jobs, as long as these take."""
    begun = tmp_path / 'begun'
    task = lambda: begun.touch() or time.sleep(600)  # noqa: E731
    launcher, fork = ClusterLauncher(), multiprocessing.get_context('fork')
    process = fork.Process(target=launcher.each, args=([task],))
    process.start()
    wait_for(begun)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == EXIT_CODES[number]
    assert f'Stopped by {signal.Signals(number).name}. The jobs continue' in capfd.readouterr().err


def test_a_cancelled_job_is_named(run: Run, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('submitit.core.core.Job._results_timeout_s', 0)  # no result will come
    (slurm / 'state').write_text('CANCELLED')
    (slurm / 'srun').write_text('#!/bin/bash\n')
    with pytest.raises(UserError, match=r'title: job 1 ended without a result.*CANCELLED'):
        execute(ClusterLauncher(), run, 'pass')


def test_a_finished_run_may_be_of_another_machine_than_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs' GPUs compute in bf16, and the processor that looks at their records does not."""
    identity = {'precision': 'bf16', 'batch_size': 8}
    record = {'status': 'finished', 'task': 'x', 'format': FORMAT, 'wall_seconds': 1.0}
    record |= {
        'identity': identity,
        'generations': [{'last': {'mAP': 0.5}}],
        'paper': {'metric': 'mAP'},
    }
    (tmp_path / 'run.json').write_text(json.dumps(record))
    here = {'precision': 'float32'}
    monkeypatch.setattr(launch, 'load_config', lambda *_: None)
    monkeypatch.setattr(launch, 'prepare', lambda *_: Config({'identity': identity | here}))
    run = Run('title', Path('x.py'), tmp_path)
    assert ClusterLauncher().run(run) == record
    with pytest.raises(UserError, match='precision=bf16, but this one has float32'):
        Launcher().run(run)
    here['batch_size'] = 4
    with pytest.raises(UserError, match='batch_size=8, but this one has 4'):
        ClusterLauncher().run(run)


def test_options_of_the_user_come_before_what_a_run_asks_for(
    run: Run, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def update(_: object, **settings: object) -> None:
        asked.append(settings)
        raise RuntimeError('enough')

    monkeypatch.setattr('submitit.AutoExecutor.update_parameters', update)
    for options in ({}, {'cpus_per_task': 16, 'timeout_min': 5}):
        with pytest.raises(UserError, match='enough'):
            execute(ClusterLauncher(gpus=2, options=options), run, 'pass')
    usual = {'name': 'x', 'timeout_min': 24 * 60, 'gpus_per_node': 2, 'cpus_per_task': 2}
    assert asked == [usual, usual | {'cpus_per_task': 16, 'timeout_min': 5}]
