"""The benchmark of fine-tuning: which runs it compares. No times are tested."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from downstream.build import prepare
from downstream.studies import benchmark
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize('config', ['small/knn_r18', 'demo/r18_bl'])
def test_what_is_no_fine_tuning_is_named(config: str) -> None:
    with pytest.raises(UserError, match='is not a fine-tuning config'):
        benchmark.finetune_rows(ROOT / f'configs/{config}.py', [], rounds=1)


@pytest.mark.parametrize(
    ('stem', 'batch'),
    [
        ('demo/deeplabv3_r18_voc12', 8),
        ('demo/faster_rcnn_r18_voc07', 8),
        ('small/faster_rcnn_r50_fpn_voc07', 4),  # of caffe's style
    ],
)
def test_a_run_is_compared_with_the_library_s(
    stem: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Config] = []

    def run_seconds(config: Config, rounds: int) -> float:
        assert Path(config.backbone_file).is_file() and Path(config.data_root).is_dir()
        measured.append(config)
        return 2.0 if 'record' in config.default_hooks else 4.0

    monkeypatch.setattr(benchmark, 'run_seconds', run_seconds)
    options = ['precision=float32']
    rows = benchmark.finetune_rows(ROOT / f'configs/{stem}.py', options, rounds=1)
    stem = Path(stem).name
    assert {(row['name'], row['unit']): row['value'] for row in rows} == {
        (f'{stem}, batch {batch}: run / library run', ''): 0.5,
        (f'{stem}, batch {batch}: run', 'ms'): 2000.0,
        (f'{stem}, batch {batch}: library run', 'ms'): 4000.0,
        (f'{stem}, batch {batch}: run', 'images/s'): batch / 2.0,
    }
    assert rows[0]['goal'] == '≤ 1' and rows[0]['met']
    ours, theirs = measured[:2]
    assert theirs.runner_type == 'Runner' != ours.runner_type
    for key in ('model', 'optim_wrapper', 'param_scheduler'):
        assert theirs[key] == ours[key]
    assert theirs.train_dataloader.dataset == ours.train_dataloader.dataset.dataset
    assert theirs.train_dataloader.batch_size == ours.train_dataloader.batch_size


@pytest.mark.parametrize('stem', ['deeplabv3_r18_voc12', 'faster_rcnn_r18_voc07'])
def test_a_library_run_is_made_of_the_library_s_parts(
    stem: str, voc: Path, backbone_file: str, tmp_path: Path
) -> None:
    options = [f'data_root={voc}', f'backbone_file={backbone_file}', 'precision=float32']
    config = benchmark.library_run(prepare(load_config(ROOT / f'configs/demo/{stem}.py', options)))
    config.work_dir = config.experiment_name = str(tmp_path)
    runner = RUNNERS.build(config)
    loader = runner.train_loop.dataloader
    parts = [runner, runner.train_loop, runner.log_processor, *runner.hooks, runner.model]
    parts += [loader.dataset, loader.sampler, loader.batch_sampler]
    owners = {type(part).__module__.split('.')[0] for part in parts}
    assert owners <= {'mmengine', 'mmdet', 'mmseg', 'torch'}
    conv = runner.model.backbone.layer1[0].conv1.weight
    assert not conv.is_contiguous(memory_format=torch.channels_last)
