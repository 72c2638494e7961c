import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from pretrain.classifier import student_weights
from pretrain.hooks import ensemble_probabilities
from pretrain.metrics import TopKError
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record


@pytest.mark.parametrize('temperature', [1.0, 2.0, 3.0])
def test_ensemble_against_a_loop(temperature: float) -> None:
    z = np.random.default_rng(0).normal(0, 2, (4, 5, 7))  # K, N, C
    expected = np.zeros((5, 7))
    for k in range(1, 5):
        for n in range(5):
            e = [math.exp(temperature ** (k - 1) * x) for x in z[k - 1, n]]
            expected[n] += np.array(e) / sum(e) / 4
    scores = ensemble_probabilities(torch.tensor(z), temperature)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)  # float32


@pytest.mark.parametrize(
    ('method', 'options', 'temperature'),
    [
        ('se', (), 1.0),
        ('sd', (), 2.0),
        # Without a chain of teachers that T softens, all snapshots are alike.
        ('sd', ('algorithm.teacher_weight=0.0',), 1.0),
        ('sd', ('algorithm.symmetric=True',), 1.0),
        ('sd', ('algorithm.copy_every=1',), 1.0),
    ],
)
def test_record_has_the_ensemble_of_the_snapshots(
    method: str,
    options: tuple[str, ...],
    temperature: float,
    train: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, devices = [], []
    own = ensemble_probabilities
    monkeypatch.setattr(
        'pretrain.hooks.ensemble_probabilities', lambda z, t: used.append(t) or own(z, t)
    )
    make = TopKError
    monkeypatch.setattr(
        'pretrain.hooks.TopKError',
        lambda collect_device: devices.append(collect_device) or make(collect_device),
    )
    runner = train(method, tmp_path, *options)
    assert used == [temperature]
    assert devices == ['gpu']  # several processes must not communicate through files
    last = copy.deepcopy(runner.model.student.state_dict())
    network = runner.model.student.eval()
    wrong = count = 0
    for batch in runner.val_dataloader:
        images = runner.model.data_preprocessor(batch)['inputs']
        scores = 0
        for k in (1, 2):
            network.load_state_dict(student_weights(load_from_disk(tmp_path / f'snapshot_{k}.pth')))
            with torch.no_grad():
                scores = scores + (temperature ** (k - 1) * network(images)).softmax(dim=1)
        wrong += int((scores.argmax(dim=1) != batch['data_samples']).sum())
        count += len(images)
    record = read_record(tmp_path / 'run.json')
    assert record['ensemble']['top1_error'] == pytest.approx(100 * wrong / count)
    assert all(torch.equal(last[name], tensor) for name, tensor in network.state_dict().items())


def test_a_run_that_was_stopped_in_its_ensemble_has_it_after_a_resume(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """Nothing is left to train or to validate, and the model still is as for training."""
    train('sd', tmp_path)
    whole = read_record(tmp_path / 'run.json')
    config = tiny_config('sd', tmp_path)
    config.load_from, config.resume = str(tmp_path / 'epoch_3.pth'), True
    config.experiment_name += '-resumed'
    runner = Runner.from_cfg(config)
    runner.train()
    record = read_record(tmp_path / 'run.json')
    assert (record['ensemble'], record['sessions']) == (whole['ensemble'], 2)
    last = student_weights(load_from_disk(tmp_path / 'epoch_3.pth'))
    for name, tensor in runner.model.student.state_dict().items():
        assert torch.equal(tensor, last[name]), name


def test_single_snapshot_is_no_ensemble(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'algorithm.generations=1')
    assert 'ensemble' not in read_record(tmp_path / 'run.json')


def test_run_from_a_shared_snapshot_has_its_ensemble(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('se', tmp_path / 'se')
    train('sd', tmp_path / 'sd')
    config = tiny_config('sd', tmp_path / 'shared')
    config.load_from, config.resume = str(tmp_path / 'se/snapshot_1.pth'), True
    Runner.from_cfg(config).train()
    alone, shared = (read_record(tmp_path / name / 'run.json') for name in ('sd', 'shared'))
    assert shared['ensemble'] == alone['ensemble']


def test_a_run_from_a_shared_snapshot_has_its_own_peak_memory(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('sd', tmp_path / 'sd')
    checkpoint = load_from_disk(tmp_path / 'sd/snapshot_1.pth')
    checkpoint['message_hub']['runtime_info']['peak_memory_mb'] = 1e9
    torch.save(checkpoint, tmp_path / 'sd/snapshot_1.pth')
    config = tiny_config('se', tmp_path / 'se')
    config.load_from, config.resume = str(tmp_path / 'sd/snapshot_1.pth'), True
    Runner.from_cfg(config).train()
    assert read_record(tmp_path / 'se/run.json')['peak_memory_mb'] < 1e9


def test_snapshots_of_different_runs_are_refused(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('se', tmp_path / 'other', 'randomness.seed=1')
    runner = train('se', tmp_path / 'mine')
    (tmp_path / 'other/snapshot_1.pth').replace(tmp_path / 'mine/snapshot_1.pth')
    with pytest.raises(
        UserError, match=r'snapshot_1\.pth \(epoch 1\) was trained with randomness\.seed=1'
    ):
        runner.call_hook('after_train')


def test_snapshots_of_before_an_accepted_change_belong_to_the_run(
    train: Callable, tmp_path: Path
) -> None:
    """Also of a setting that no checkpoint can be resumed with."""
    train('se', tmp_path / 'before', 'randomness.seed=1')
    runner = train('se', tmp_path / 'run')
    (tmp_path / 'before/snapshot_1.pth').replace(tmp_path / 'run/snapshot_1.pth')
    changes = [{'epoch': 1, 'key': key} for key in ('randomness.seed', 'data_seed')]
    runner.cfg.accepted_changes = changes
    runner.call_hook('after_train')
    assert runner.message_hub.get_info('ensemble')
