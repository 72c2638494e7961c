"""The benchmark's own arithmetic, and that each part measures what it says; no time is tested."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from pretrain.build import LOSS_SETTINGS
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location('benchmark', ROOT / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_a_goal_is_met_on_its_own_side(benchmark: ModuleType) -> None:
    assert benchmark.row('x', 2.0, 'ms') == {
        'name': 'x', 'value': 2.0, 'unit': 'ms', 'goal': None, 'met': None,
    }  # fmt: skip
    for value, met in ((1.9, True), (2.0, True), (2.1, False)):
        assert benchmark.row('x', value, '', at_most=2.0)['met'] is met
        assert benchmark.row('x', 4.0 - value, '', at_least=2.0)['met'] is met


def test_steps_take_turns_after_one_to_warm_up(benchmark: ModuleType) -> None:
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'ab'}
    assert benchmark.seconds(steps, rounds=3).keys() == {'a', 'b'}
    assert ''.join(calls) == 'ab' * 4


def test_shown_as_written(benchmark: ModuleType) -> None:
    rows = [
        benchmark.row('plain', 1234.5, 'ms'),
        benchmark.row('kept', 1.2, '', at_most=1.26),
        benchmark.row('broken', 1.9, '', at_least=2.3),
    ]
    lines = benchmark.show(json.loads(json.dumps(rows))).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:5]]
    assert cells == [
        ['kept', '1.2', '≤ 1.26', 'met'],
        ['broken', '1.9', '≥ 2.3', 'missed'],
        ['plain', '1234 ms', '', ''],
    ]


def test_steps_of_a_small_network(benchmark: ModuleType) -> None:
    options = ['model.network.depth=18', 'image_size=32', 'batch_size=2']
    config = load_config(ROOT / 'configs/pretrain/r152_sd.py', options)
    settings = {key: config.algorithm[key] for key in LOSS_SETTINGS}
    config.model.loss = dict(type='SnapshotDistillationLoss', **settings)
    values = {row['name']: row['value'] for row in benchmark.step_rows(config, rounds=1)}
    assert values['SD step / BL step'] == pytest.approx(values['SD: step'] / values['BL: step'])
    best = min(value for name, value in values.items() if name in OTHERS)
    assert values['BL step / best other loop'] == pytest.approx(values['BL: step'] / best)
    assert config.model.loss.teacher_weight > 0


def test_run_of_a_small_network(benchmark: ModuleType, tmp_path: Path) -> None:
    options = ['model.network.depth=18', 'image_size=32', 'batch_size=2']
    options += ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']
    path = ROOT / 'configs/pretrain/r152_sd.py'
    config = benchmark.runner_config(path, options, 2, tmp_path)
    rows = {(row['name'], row['unit']): row for row in benchmark.runner_rows(config, 2)}
    ours, path = (rows[f'r152_sd: {name}', 'ms']['value'] for name in ('run', 'data path'))
    assert rows['r152_sd: data path / run', '']['value'] == pytest.approx(path / ours)
    assert rows['r152_sd: run / bare loop', '']['goal'] == 1.1  # 1.02 is for ResNet-152
    assert config.train_cfg.max_epochs == 1


OTHERS = ('torchvision: step', 'timm: step')


def test_loader_of_a_few_pictures(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='holds no file'):
        benchmark.loader_rows(tmp_path, rounds=1)
    for number in range(2):
        Image.effect_noise((320, 280), 60).convert('RGB').save(tmp_path / f'{number}.jpg')
    values = {row['name']: row['value'] for row in benchmark.loader_rows(tmp_path, rounds=1)}
    for other in ('torchvision', 'OpenCV'):
        name = f'{other}, crop and mirror'
        assert values[f'ours / {name}'] == pytest.approx(values['ours'] / values[name])
