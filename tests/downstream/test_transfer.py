import json
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import downstream.transfer as transfer_module
from downstream.transfer import PROGRESS, Transfer
from pretrain.errors import UserError
from pretrain.export import weights_sha256

CONFIGS = [Path('configs/demo/faster_rcnn.py'), Path('configs/demo/deeplabv3.py')]
METRICS = {'faster_rcnn': ('detection', 'mAP'), 'deeplabv3': ('segmentation', 'mIoU')}


def write_backbone(path: Path, value: float, depth: int = 18) -> Path:
    weights = OrderedDict(w=torch.tensor([value]))
    weights.provenance = {'depth': depth, 'weights_sha256': weights_sha256(weights)}
    torch.save(weights, path)
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were started; each leaves the record that a real one would."""
    titles = []

    def launch(
        self: Transfer, title: str, config: Path, work_dir: Path, options: Sequence[str]
    ) -> None:
        titles.append(title)
        settings = dict(option.split('=', 1) for option in options)
        task, metric = METRICS[config.stem]
        provenance = torch.load(settings['backbone_file'], weights_only=True).provenance
        record = {
            'status': 'finished',
            'task': task,
            'config': config.stem,
            'label': settings['label'],
            'device': 'CPU',
            'wall_seconds': 1.0,
            'paper': {'metric': metric},
            'config_sha256': 'same',
            'identity': {'seed': int(settings['randomness.seed']), 'backbone': provenance},
            'data': {'train': {'count': 1}, 'val': {'count': 1}},
            'history': [{'epoch': 1}],
            'generations': [{'last': {metric: 0.5}}],
        }
        work_dir.mkdir(parents=True, exist_ok=True)
        (work_dir / 'run.json').write_text(json.dumps(record))

    monkeypatch.setattr(Transfer, '_launch', launch)
    config = Config({'config_sha256': 'same', 'model': {'backbone': {'depth': 18}}})
    monkeypatch.setattr(transfer_module, 'load_config', lambda *_: config)
    monkeypatch.setattr(transfer_module, 'check_data', lambda *_: None)
    return titles


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    files = {
        name: write_backbone(tmp_path / f'{name}.pth', x) for name, x in (('BL', 1), ('SD', 2))
    }
    return Transfer(files, CONFIGS, seeds=[0, 1], work_dir=tmp_path / 'out')


def test_every_backbone_task_and_seed_once(transfer: Transfer, launched: list[str]) -> None:
    table = transfer.run()
    assert len(launched) == len(set(launched)) == 2 * 2 * 2
    assert launched[0].startswith('[1/8] faster_rcnn, BL, seed 0')
    assert launched[-1].startswith('[8/8] deeplabv3, SD, seed 1')
    assert (transfer.work_dir / 'transfer.md').read_text() == table
    assert [line.split('|')[3].strip() for line in table.splitlines()[2:6]] == ['BL', 'SD'] * 2


def test_finished_runs_are_skipped_and_others_done(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    transfer.run()
    launched.clear()
    record = transfer.work_dir / 'SD/deeplabv3/seed1/run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'status': 'running'}))
    (transfer.work_dir / 'BL/faster_rcnn/seed0/run.json').unlink()
    transfer.run()
    assert launched == ['[1/8] faster_rcnn, BL, seed 0', '[8/8] deeplabv3, SD, seed 1']


def test_results_of_another_backbone_are_refused(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    transfer.run()
    write_backbone(tmp_path / 'SD.pth', 3)
    with pytest.raises(UserError, match='another backbone'):
        transfer.run()


def test_finished_run_with_other_settings_is_refused(
    transfer: Transfer, launched: list[str]
) -> None:
    transfer.run()
    record = transfer.work_dir / 'SD/deeplabv3/seed1/run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'config_sha256': 'other'}))
    with pytest.raises(UserError, match='other settings'):
        transfer.run()


def test_records_of_earlier_calls_do_not_enter_the_table(
    transfer: Transfer, launched: list[str]
) -> None:
    transfer.run()
    table = replace(transfer, seeds=[1]).run()
    assert [line.split('|')[6].strip() for line in table.splitlines()[2:6]] == ['1'] * 4


def test_impossible_comparisons_stop_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match='given twice'):
        replace(transfer, seeds=[0, 0]).run()
    write_backbone(tmp_path / 'SD.pth', 2, depth=152)
    with pytest.raises(UserError, match=r'SD is a ResNet-152, .* builds a ResNet-18'):
        transfer.run()
    assert not launched


def test_missing_backbone_stops_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    (tmp_path / 'SD.pth').unlink()
    with pytest.raises(UserError, match=r'No checkpoint .*SD\.pth'):
        transfer.run()
    assert not launched


def test_failed_run_says_why(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **options: object) -> subprocess.Popen:
        return popen(failing, **options)

    popen = subprocess.Popen
    failing = [sys.executable, '-c', 'exit("error: no luck")']
    monkeypatch.setattr(subprocess, 'Popen', start)
    work_dir = transfer.work_dir / 'run'
    with pytest.raises(UserError, match='title failed: no luck'):
        transfer._launch('title', CONFIGS[0], work_dir, [])
    assert (work_dir / 'train.log').read_text() == 'error: no luck\n'


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        (
            '11/23 22:43:53 - mmengine - INFO - Epoch(train) [1][10/11]  lr: 3.9e-03  '
            'eta: 0:00:31  time: 2.6059',
            ('Epoch(train) [1][10/11]', 'eta: 0:00:31'),
        ),
        ('Epoch(train) [12][ 50/5004]  lr: 1e-01  eta: 3 days, 1:02:03  time: 1', (
            'Epoch(train) [12][ 50/5004]', 'eta: 3 days, 1:02:03')),
        ('Epoch(val) [1][4/4]    top1_error: 82.5000', ('Epoch(val) [1][4/4]', None)),
    ],
)  # fmt: skip
def test_progress_is_read_from_the_log(line: str, expected: tuple) -> None:
    assert PROGRESS.search(line).groups() == expected


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_run_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    script = (
        'import subprocess, sys, time\n'
        'from downstream.transfer import _die_with_parent\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],\n'
        '                         preexec_fn=_die_with_parent)\n'
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
