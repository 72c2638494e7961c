"""Two processes from the command line: stopped, killed and resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.runs.checkpoint import checkpoints
from pretrain.runs.errors import UserError
from pretrain.runs.start import claim
from tests.conftest import ROOT
from tests.stopping import assert_same_run

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def train(image_folder: Path) -> Callable[..., subprocess.Popen]:
    """``train(work_dir, processes)``: a resumed SD run, two epochs of four iterations, in a process
    group of its own."""

    def start(work_dir: Path, processes: int = 2) -> subprocess.Popen:
        options = [
            f'data_root={image_folder}', 'model.network.num_classes=4', 'image_size=32',
            'batch_size=8', 'epochs=2', 'train_dataloader.num_workers=1',
            'val_dataloader.num_workers=0', 'default_hooks.logger.interval=1',
        ]  # fmt: skip
        config = str(ROOT / 'configs/demo/r18_sd.py')
        command = ['bash', 'tools/dist_train.sh', config, str(processes)]
        if processes == 1:
            command = [sys.executable, 'tools/train.py', config]
        return subprocess.Popen(
            [*command, '--resume', '--work-dir', str(work_dir), '--cfg-options', *options],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {'CUDA_VISIBLE_DEVICES': ''},
        )  # fmt: skip

    return start


def follow(process: subprocess.Popen, until: str) -> None:
    """Read the log up to a line; training starts tens of seconds after the command."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(until, line):
            return
    raise AssertionError(''.join(lines))


def wait_until_free(work_dir: Path) -> None:
    """Until the last process of a run has gone; pytest's time limit ends this."""
    while True:
        try:
            claim(work_dir).close()
            return
        except UserError:
            time.sleep(0.2)


def test_two_processes_stop_together_and_go_on(train: Callable, tmp_path: Path) -> None:
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    output, _ = train(whole).communicate()
    assert (whole / 'epoch_2.pth').exists(), output

    # The launcher is killed: its processes save and end.
    process = train(cut)
    follow(process, r'Epoch\(train\) +\[1\]\[1/4\]')
    process.kill()
    process.wait()
    wait_until_free(cut)
    (first,) = checkpoints(cut)
    assert first.name.startswith('epoch_0_iter_')

    # A scheduler warns the launcher.
    process = train(cut)
    follow(process, r'Epoch\(train\) +\[2\]\[1/4\]')
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert checkpoints(cut)[-1].name.startswith('epoch_1_iter_')

    output, _ = train(cut).communicate()
    assert 'Traceback' not in output
    assert_same_run(whole, cut, 'epoch_2.pth')


@pytest.mark.parametrize(('processes', 'to_all'), [(1, True), (2, False), (2, True)])
def test_a_scheduler_ends_the_job(
    processes: int, to_all: bool, train: Callable, tmp_path: Path
) -> None:
    """SIGTERM, to the command alone or to all its processes, loaders' workers included."""
    process = train(tmp_path, processes)
    follow(process, r'Epoch\(train\) +\[1\]\[1/4\]')
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 143, output
    assert 'Traceback' not in output
    assert checkpoints(tmp_path)
    wait_until_free(tmp_path)


def test_a_process_is_killed(train: Callable, tmp_path: Path) -> None:
    process = train(tmp_path)
    follow(process, r'Epoch\(train\) +\[1\]\[1/4\]')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert re.search(r'error: Process \d was ended by SIGKILL.*--resume', output), output
