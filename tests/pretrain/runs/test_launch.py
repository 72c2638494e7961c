import io
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from pretrain.runs import launch
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run, news_of
from pretrain.runs.processes import VARIABLES
from pretrain.runs.saving import EXIT_CODES

FINISHED = {'status': 'finished', 'wall_seconds': 1.0, 'paper': {'metric': 'mAP'}}
FINISHED |= {'generations': [{'last': {'mAP': 0.5}}], 'identity': {'lr': 0.1}}
KILLED = 'import os, signal; os.kill(os.getpid(), signal.{})'


def prepare_as(identity: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the launcher find this identity for its config."""
    monkeypatch.setattr(launch, 'load_config', lambda *_: None)
    config = Config({'identity': identity})
    monkeypatch.setattr(launch, 'prepare', lambda *_: config)


@pytest.mark.parametrize(
    ('record', 'said'),
    [
        (None, r'title ended, but .*run\.json does not say that it finished'),
        (FINISHED | {'status': 'running'}, r'run\.json does not say that it finished'),
        (FINISHED, r'holds a finished run with other settings: it has lr=0\.1, .* has 0\.2'),
    ],
)
def test_a_result_must_be_that_of_the_run_that_was_asked_for(
    record: dict | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config may have been edited meanwhile, or a job of another command may have ended."""
    records = [None, record]
    monkeypatch.setattr(launch, 'read_record', lambda _: records.pop(0))
    monkeypatch.setattr(Launcher, '_launch', lambda *_: None)
    prepare_as({'lr': 0.2}, monkeypatch)
    with pytest.raises(UserError, match=said):
        Launcher().run(Run('title', Path('configs/x.py'), tmp_path))


def test_a_run_saves_although_its_log_cannot_be_written(tmp_path: Path) -> None:
    program = 'import pathlib, time; print(1, flush=True); time.sleep(1); '
    program += f'pathlib.Path("{tmp_path}/saved").touch()'
    run = Run('title', Path('configs/x.py'), tmp_path)
    with pytest.raises(OSError, match='/dev/full'):
        Launcher()._execute(run, [sys.executable, '-c', program], Path('/dev/full'))
    assert (tmp_path / 'saved').exists()


def test_runs_do_not_learn_of_another_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, 'LOCAL_WORLD_SIZE', 'TORCHELASTIC_ERROR_FILE'):
        monkeypatch.setenv(name, '1')
    monkeypatch.setenv('OTHER', '1')
    environment = Launcher()._environment()
    assert environment['OTHER'] == '1'
    assert not {*VARIABLES, 'LOCAL_WORLD_SIZE', 'TORCHELASTIC_ERROR_FILE'} & environment.keys()


@pytest.mark.parametrize(
    ('program', 'said'),
    [
        # A line that is not UTF-8, such as the name of a file, ends no run.
        (
            'import os; os.write(1, bytes([255, 10])); exit("error: no luck")',
            'title failed: no luck',
        ),
        ('exit(3)', 'title failed with exit code 3: see the end of .*train.log'),
        (KILLED.format('SIGKILL'), 'title was ended by SIGKILL.*memory.*command again'),
        # Of an earlier job, on a cluster.
        (
            'print("error: no luck", flush=True); ' + KILLED.format('SIGKILL'),
            'title was ended by SIGKILL',
        ),
        (KILLED.format('SIGSEGV'), 'title was ended by SIGSEGV. Run the same command again'),
        ('exit(130)', 'title was stopped by SIGINT. Run the same command again'),
        ('exit(143)', 'title was stopped by SIGTERM. Run the same command again'),
    ],
)
def test_failed_run_says_why(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **options: object) -> subprocess.Popen:
        return popen([sys.executable, '-c', program], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', start)
    # The locale's encoding may be poorer than what a run prints.
    monkeypatch.setattr(io, 'text_encoding', lambda encoding, *_: encoding or 'ascii')
    work_dir = tmp_path / 'run'
    with pytest.raises(UserError, match=said):
        Launcher().run(Run('title', Path('configs/x.py'), work_dir))
    printed = '\ufffd\n' * ('os.write' in program) + 'error: no luck\n' * ('no luck' in program)
    assert (work_dir / 'train.log').read_text(encoding='utf-8') == printed


@pytest.mark.parametrize('gpus', [0, 2])
def test_run_is_started_as_an_installed_module(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by a file of ``tools/``, which is not installed."""
    commands = []

    def start(command: list[str], **_: object) -> None:
        commands.append(command)
        raise UserError('enough')

    monkeypatch.setattr(subprocess, 'Popen', start)
    for source in (None, tmp_path / 'snapshot_1.pth'):
        with pytest.raises(UserError, match='enough'):
            Launcher(gpus).run(Run('title', Path('configs/x.py'), tmp_path, ['a=1'], source))
    command, branch = commands
    place = ['--work-dir', str(tmp_path), '--resume']
    assert command[4:7] == place
    assert '--start-from' not in command
    begin = branch.index('--start-from')
    assert branch[begin : begin + 2] == ['--start-from', str(tmp_path / 'snapshot_1.pth')]
    assert branch[:begin] + branch[begin + 2 :] == command
    assert command[:4] == [sys.executable, '-m', 'pretrain.runs.start', 'configs/x.py']
    assert command[-2:] == ['--cfg-options', 'a=1']
    assert ('--gpus' in command) == bool(gpus)
    assert not any('tools' in Path(part).parts for part in command[1:])


@pytest.mark.parametrize(
    ('gpus', 'visible', 'names'),
    [
        (0, None, ['0', '1', '2']),
        (0, '4,6,7', ['4', '6', '7']),
        (1, None, ['0', '1', '2']),
        (2, None, ['0,1', '2,3', '4,5']),
    ],
)
def test_runs_are_dealt_out_to_the_gpus(
    gpus: int,
    visible: str | None,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(launch, 'usable_gpus', lambda: 3 * max(1, gpus))
    given, together = [], threading.Barrier(3)

    def start(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env['CUDA_VISIBLE_DEVICES'])
        together.wait(60)
        raise UserError('enough')

    monkeypatch.setattr(subprocess, 'Popen', start)
    launcher = Launcher(gpus, jobs=3)
    runs = [Run(name, Path('configs/x.py'), tmp_path / name) for name in 'abc']
    with pytest.raises(UserError, match='enough'):
        launcher.each([partial(launcher.run, run) for run in runs])
    assert sorted(given) == names


def test_lines_of_runs_side_by_side_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is written at once: between two writes another thread may write."""
    said = []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            said.extend([text] if text else [])
            return len(text)

    def start(*_: object, **options: object) -> subprocess.Popen:
        return popen([sys.executable, '-c', 'print("Epoch(train) [1][1/1]")'], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(launch, 'read_record', lambda _: records.pop(0))
    monkeypatch.setattr(subprocess, 'Popen', start)
    monkeypatch.setattr(time, 'monotonic', iter(range(0, 1000, 100)).__next__)
    monkeypatch.setattr(sys, 'stdout', Screen())
    records = [None, FINISHED]
    prepare_as(FINISHED['identity'], monkeypatch)
    Launcher().run(Run('title', Path('configs/x.py'), tmp_path))
    assert said == [
        f'title: log in {tmp_path / "train.log"}\n',
        'title: Epoch(train) [1][1/1]\n',
        'title: done in 1 s, mAP 50.00 %\n',
    ]


@pytest.mark.parametrize('jobs', [1, 2])
def test_no_run_begins_after_a_failure(jobs: int, capsys: pytest.CaptureFixture) -> None:
    """A pool that is told to cancel has often begun the next task; the failure is said at once."""
    begun, printed = [], []

    def fail() -> dict:
        raise UserError('no luck')

    def go_on() -> dict:
        while jobs > 1 and not (text := capsys.readouterr().err):  # until the failure is known
            time.sleep(0.01)
        printed.append(text if jobs > 1 else capsys.readouterr().err)
        return {}

    def next_one() -> dict:
        begun.append(True)
        return {}

    tasks = [fail, *[go_on] * (jobs - 1), *[next_one] * 20]
    with pytest.raises(UserError, match='no luck'):
        Launcher(jobs=jobs).each(tasks)
    assert not begun
    assert jobs > 1 or capsys.readouterr().err == ''  # what is raised says it
    assert all('no luck\nNo further run begins' in text for text in printed)


SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path(sys.argv[1]).write_text('saved')
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print('Epoch(train) [1][1/9]', flush=True)
time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.parametrize('number', EXIT_CODES)
def test_a_signal_stops_the_runs_and_waits_until_they_have_saved(
    number: int,
    usual_signals: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    me = os.getpid()
    launcher, train = Launcher(jobs=2), threading.Barrier(2, lambda: os.kill(me, number))
    follow = launch._follow

    def start(name: str) -> dict:
        command = [sys.executable, '-c', SAVES, str(tmp_path / name)]
        launcher._execute(Run(name, Path('x.py'), tmp_path), command, tmp_path / f'{name}.log')
        raise UserError(f'{name} was stopped.')

    def begun(process: subprocess.Popen, *rest: object) -> list[str]:
        process.stdout.readline()
        train.wait(60)
        return follow(process, *rest)

    monkeypatch.setattr(launch, '_follow', begun)
    with pytest.raises(SystemExit) as stop:
        launcher.each([partial(start, name) for name in 'abc'])
    assert stop.value.code == EXIT_CODES[number]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'a.log', 'b', 'b.log']
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert said.startswith(f'Stopped by {signal.Signals(number).name}. The runs save')
    assert signal.getsignal(number) == signal.SIG_DFL


def test_more_gpus_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'usable_gpus', lambda: 8)
    assert Launcher(4, 2).jobs == 2
    with pytest.raises(
        UserError, match='4 runs at a time with 4 GPUs each, but this machine has 8'
    ):
        Launcher(4, 4)


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        (
            '11/23 22:43:53 - mmengine - INFO - Epoch(train) [1][10/11]  lr: 3.9e-03  '
            'eta: 0:00:31  images/s: 12.3  time: 2.6  loss: 2.2  kl: 0.1  error: 9.5',
            'Epoch(train) [1][10/11]  eta: 0:00:31  images/s: 12.3  loss: 2.2  error: 9.5',
        ),
        (
            'Epoch(train) [12][ 50/5004]  lr: 1e-01  eta: 3 days, 1:02:03  images/s: 1.2e+03  '
            'loss: 1.5  loss_rpn_cls: 0.5  decode.loss_ce: 0.1',
            'Epoch(train) [12][ 50/5004]  eta: 3 days, 1:02:03  images/s: 1.2e+03  loss: 1.5',
        ),
        ('Epoch(val) [1][4/4]    top1_error: 82.5000', 'Epoch(val) [1][4/4]  top1_error: 82.5000'),
        (
            'Epoch(val) [2][4/4]    pascal_voc/mAP: 0.45  pascal_voc/AP50: 0.45',
            'Epoch(val) [2][4/4]  pascal_voc/mAP: 0.45',
        ),
        ('Saved epoch_1.pth.', None),
    ],
)
def test_news_are_read_from_the_log(line: str, expected: str | None) -> None:
    assert news_of(line) == expected


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_run_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    script = (
        'import subprocess, sys, time\n'
        'from pretrain.runs.processes import end_with_parent\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],\n'
        '                         preexec_fn=end_with_parent)\n'
        'print(child.pid, flush=True)\n'
        'time.sleep(600)\n'
    )
    parent = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    child = Path('/proc', parent.stdout.readline().strip())
    assert child.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while child.exists() and 'zombie' not in (child / 'status').read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ('gpus', 'jobs', 'shared'), [(0, 4, True), (0, 2, False), (2, 1, False), (1, 2, False)]
)
def test_runs_that_share_a_gpu_are_told_of_mps(
    gpus: int,
    jobs: int,
    shared: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(launch, 'usable_gpus', lambda: 2)
    monkeypatch.setenv('CUDA_MPS_PIPE_DIRECTORY', str(tmp_path))
    Launcher(gpus, jobs)
    assert ('4 runs share 2 GPUs' in capsys.readouterr().err) == shared
    (tmp_path / 'control').touch()  # MPS runs
    Launcher(gpus, jobs)
    assert not capsys.readouterr().err


def test_runs_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'usable_gpus', lambda: 0)
    monkeypatch.setattr(launch, 'usable_cores', lambda: 16)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for gpus, jobs, threads in ((0, 1, '16'), (0, 4, '4'), (2, 4, '2'), (8, 4, '1')):
        assert Launcher(gpus, jobs)._environment()['OMP_NUM_THREADS'] == threads
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert Launcher(0, 4)._environment()['OMP_NUM_THREADS'] == '3'
