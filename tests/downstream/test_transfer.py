import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import downstream.transfer as transfer_module
import pretrain.launch as launch_module
from downstream.transfer import Transfer
from pretrain.checkpoint import weights_sha256
from pretrain.errors import UserError
from pretrain.launch import Launcher, Run

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

    def launch(self: Launcher, run: Run) -> None:
        titles.append(run.title)
        settings = dict(option.split('=', 1) for option in run.options)
        task, metric = METRICS[run.config.stem]
        provenance = torch.load(settings['backbone_file'], weights_only=True).provenance
        record = {
            'status': 'finished',
            'task': task,
            'config': run.config.stem,
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
        run.work_dir.mkdir(parents=True, exist_ok=True)
        (run.work_dir / 'run.json').write_text(json.dumps(record))

    monkeypatch.setattr(Launcher, '_launch', launch)
    config = Config({'config_sha256': 'same', 'model': {'backbone': {'depth': 18}}})
    for module in (transfer_module, launch_module):
        monkeypatch.setattr(module, 'load_config', lambda *_: config)
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
