import argparse
import io
import multiprocessing.connection
import os
import pwd
import re
import resource
import signal
import socket
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from pretrain.runs import packages
from pretrain.runs.cli import TRACEBACK, add_study_arguments, run
from pretrain.runs.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def without_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a test that asked for them."""
    monkeypatch.setenv(TRACEBACK, '1')
    monkeypatch.delenv(TRACEBACK)


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        assert '--traceback' not in sys.argv
        raise error

    return main


def test_missing_packages_are_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of what the installed suite needs; what may stand in a package's place is not missing."""
    wanted = [
        'torch>=2',
        'opencv-python>=5',
        'simplejpeg2>=1',
        'scipy3',
        'timm2; extra == "export"',
    ]
    monkeypatch.setattr('pretrain.runs.packages.PROJECT', Path('nowhere'))
    monkeypatch.setattr('pretrain.runs.packages.requires', lambda _: wanted)
    monkeypatch.setattr('pretrain.runs.packages.ALTERNATIVES', {'opencv-python': ('pytest',)})
    with pytest.raises(SystemExit) as stop:
        run(raises(ModuleNotFoundError("No module named 'simplejpeg2'")))
    sentence = 'error: Not installed: simplejpeg2, scipy3. Run: pip install simplejpeg2 scipy3'
    assert stop.value.code == sentence
    assert capsys.readouterr().err == ''


def test_needed_packages_are_known_installed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the repository, even beside another version that is installed."""
    monkeypatch.setattr(packages, 'requires', lambda _: ['torch>=1', 'old>=1; extra == "log"'])
    of_repository = packages.needed_packages()
    assert {'torch', 'pillow', 'mmcv-lite'} <= {*of_repository}
    assert not {'old', 'timm', 'pytest'} & {*of_repository}
    foreign = tmp_path / 'pyproject.toml'  # of another project, beside the installed package
    for text in ('[project]\nname = "other"\ndependencies = ["x"]', '[tool.other]'):
        foreign.write_text(text)
        monkeypatch.setattr(packages, 'PROJECT', foreign)
        assert packages.needed_packages() == ['torch']


def test_one_opencv_is_pinned_under_the_name_that_mmcv_asks_for() -> None:
    pins = [
        re.split('==', line)[0] for line in (ROOT / 'requirements.txt').read_text().splitlines()
    ]
    (opencv,) = (pin for pin in pins if pin.startswith('opencv'))
    assert opencv in {re.match(r'[\w-]+', want)[0] for want in requires('mmcv-lite')}
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert [want for want in project['dependencies'] if want.startswith(opencv)]


WORKER = """Caught FileNotFoundError in DataLoader worker process 0.
Original Traceback (most recent call last):
FileNotFoundError: [Errno 2] No such file or directory: 'a.jpg'
"""


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (UserError('Do this.'), 'error: Do this.'),
        (OSError(28, 'No space left on device', 'epoch_1.pth'), 'epoch_1.pth: No space left'),
        (FileNotFoundError(WORKER), "No such file or directory: 'a.jpg'"),
        (OSError(), 'error: OSError'),
        (PermissionError('\n'), 'error: PermissionError'),
    ],
)
@pytest.mark.parametrize('shown', [False, True])
def test_what_goes_wrong_is_one_sentence(
    error: Exception,
    sentence: str,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, 'argv', ['tool', *['--traceback'] * shown, 'argument'])
    with pytest.raises(SystemExit) as stopped:
        run(raises(error))
    assert sentence in stopped.value.code
    assert stopped.value.code.startswith('error: ')
    assert '\n' not in stopped.value.code
    assert ('Traceback' in capsys.readouterr().err) == shown
    with pytest.raises(SystemExit):  # as in a process that this one starts
        run(raises(error))
    assert ('Traceback' in capsys.readouterr().err) == shown


class Dies(torch.utils.data.Dataset):
    """Its loader's worker ends by a signal, as when the kernel runs out of memory."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> NoReturn:
        os.kill(os.getpid(), self.number)


def one_batch(number: int) -> None:
    next(iter(torch.utils.data.DataLoader(Dies(number), num_workers=1)))


def take_a_port_twice() -> None:
    with socket.create_server(('', 0)) as server:
        torch.distributed.TCPStore('localhost', server.getsockname()[1], 1, is_master=True)


def open_many_files() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        os.open('/', os.O_RDONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def fail_on_the_gpu(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ('main', 'fix'),
    [
        (partial(one_batch, signal.SIGKILL), 'lower train_dataloader.num_workers'),
        (partial(one_batch, signal.SIGBUS), '--shm-size'),
        (take_a_port_twice, 'set MASTER_PORT'),
        (open_many_files, 'ulimit -n'),
        (partial(fail_on_the_gpu, torch.OutOfMemoryError('CUDA out of memory.')), 'micro_batches'),
        (partial(fail_on_the_gpu, RuntimeError('CUDA error: out of memory')), 'micro_batches'),
        (lambda: torch.empty(2**50), 'raise micro_batches'),
        (lambda: bytearray(2**60), 'raise micro_batches'),
        (lambda: np.empty(2**50), 'raise micro_batches'),
    ],
)
def test_what_the_machine_has_too_little_of_is_no_fault_of_the_program(
    main: Callable[[], None], fix: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code.startswith('error: ')
    assert fix in stopped.value.code
    assert '\n' not in stopped.value.code
    assert 'Traceback' not in capsys.readouterr().err


def test_a_lost_worker_is_no_lost_process() -> None:
    with pytest.raises(SystemExit, match=r'^error: \[Errno 104\] Connection reset by peer$'):
        run(raises(ConnectionResetError('[Errno 104] Connection reset by peer')))


def test_a_kernel_that_needs_too_much_of_a_gpu_is_not_the_loaders_fault() -> None:
    error = RuntimeError('out of resource: shared memory, Required: 270336, Hardware limit: 232448')
    with pytest.raises(SystemExit, match='bug in the program'):
        run(raises(error))


@pytest.mark.parametrize('option', ['--cfg-options', '--cluster-options'])
def test_an_option_given_twice_adds_up(option: str) -> None:
    """As a script that has options of its own and those of its caller; mmengine's does as well."""
    parser = argparse.ArgumentParser()
    add_study_arguments(parser, [0], 'work_dirs', ['--cfg-options'])
    args = vars(parser.parse_args([option, 'a=1', 'b=2', option, 'a=3']))
    assert args[option[2:].replace('-', '_')] == ['a=1', 'b=2', 'a=3']
    assert vars(parser.parse_args([]))[option[2:].replace('-', '_')] == []


@pytest.mark.parametrize('shown', [False, True])
def test_ctrl_c_ends_a_tool_without_a_traceback(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, 'argv', ['tool.py', *['--traceback'] * shown])
    with pytest.raises(SystemExit) as stop:
        run(raises(KeyboardInterrupt()))
    assert stop.value.code == 130
    *trace, last = capsys.readouterr().err.splitlines()
    assert last == 'Stopped by Ctrl-C.'
    assert any('Traceback' in line for line in trace) == shown


def test_a_fault_of_the_program_says_where_to_report_it(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match=r'error: .*report .* issue'):
        run(raises(KeyError('x')))
    assert 'KeyError' in capsys.readouterr().err


@pytest.mark.parametrize('number', ['0', '-1', 'x', '1.5', ''])
@pytest.mark.parametrize('option', ['--gpus', '--jobs'])
def test_a_number_of_runs_or_processes_is_above_0(
    option: str, number: str, capsys: pytest.CaptureFixture
) -> None:
    parser = argparse.ArgumentParser()
    add_study_arguments(parser, [0], 'work_dirs', [])
    with pytest.raises(SystemExit):
        parser.parse_args([f'{option}={number}'])
    assert f'{option}: {number}: give a whole number above 0' in capsys.readouterr().err
    assert parser.parse_args([f'{option}=2'])


@pytest.mark.parametrize(('length', 'kept'), [(75, True), (76, False), (200, False)])
def test_sockets_fit_into_the_folder_of_temporary_files(
    length: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters have long ones for their jobs; a loader would wait for its workers for ever."""
    folder = f'{tmp_path}/'.ljust(length, 'x')
    Path(folder).mkdir()
    monkeypatch.setenv('TMPDIR', folder)
    monkeypatch.setattr(tempfile, 'tempdir', None)
    config = {}
    monkeypatch.setattr(multiprocessing.process.current_process(), '_config', config)

    def main() -> None:
        # Python's own folder for sockets, which it would remove at its end, when there is none.
        config['tempdir'] = tempfile.mkdtemp(prefix='pymp-')
        multiprocessing.connection.Listener(family='AF_UNIX').close()

    run(main)
    assert (os.environ['TMPDIR'] == tempfile.gettempdir() == folder) == kept


def test_no_folder_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk is full."""
    monkeypatch.setattr(tempfile, 'tempdir', None)
    monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: ['/nowhere'])
    with pytest.raises(SystemExit, match=r'^error: .*No usable temporary directory'):
        run(lambda: None)


def test_a_letter_that_the_terminal_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(), 'latin-1') as stdout:
        monkeypatch.setattr('sys.stdout', stdout)
        run(lambda: print('dätä/λ'))
        stdout.flush()
        assert stdout.buffer.getvalue().decode('latin-1') == 'dätä/\\u03bb\n'
    for other in (None, io.StringIO()):  # as `>&-` has it, and a notebook's has no encoding
        monkeypatch.setattr('sys.stdout', other)
        run(lambda: print('λ'))


def test_a_user_without_a_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setenv('HOME', '')
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    run(lambda: Path.home().rmdir())
