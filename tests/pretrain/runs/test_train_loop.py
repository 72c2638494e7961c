import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import distributed, nn

from pretrain.classifier import SnapshotClassifier
from pretrain.losses import SnapshotDistillationLoss
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from pretrain.runs.train_loop import train_in_micro_batches


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch) -> SnapshotClassifier:
    """Without batch normalisation, whose statistics are those of a piece; in float64."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    monkeypatch.setattr('pretrain.classifier.MODELS.build', lambda config: config)
    return SnapshotClassifier(network, SnapshotDistillationLoss(1.0, 2.0), nn.Identity()).double()


class Whole(nn.Module):
    """A preprocessor with mmengine's signature that changes nothing."""

    def forward(self, data: dict, training: bool) -> dict:
        return data


@pytest.mark.parametrize('pieces', [1, 2, 3, 7])
@pytest.mark.parametrize('teaching', [False, True])
def test_pieces_are_the_whole_batch(
    pieces: int, teaching: bool, classifier: SnapshotClassifier
) -> None:
    """One step of SGD, and what is logged; 3 does not divide the batch of 7."""
    classifier.data_preprocessor = Whole()
    classifier.teaching = teaching
    whole = copy.deepcopy(classifier)
    generator = torch.Generator().manual_seed(1)
    data = {
        'inputs': torch.randn(7, 3, 8, 8, generator=generator, dtype=torch.float64),
        'data_samples': torch.randint(5, (7,), generator=generator),
    }
    wrapper = OptimWrapper(torch.optim.SGD(classifier.parameters(), lr=0.5))
    logs = train_in_micro_batches(classifier, data, wrapper, pieces)
    losses = whole(**data, mode='loss')
    losses['loss'].backward()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter -= 0.5 * parameter.grad
    for ours, theirs in zip(classifier.parameters(), whole.parameters(), strict=True):
        # Float64; the teacher's logits and the statistics are computed in float32.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert logs.keys() == losses.keys()
    for name, value in logs.items():
        torch.testing.assert_close(value, losses[name].detach(), rtol=1e-6, atol=1e-8)
    assert not any(p.grad is not None and p.grad.any() for p in classifier.parameters())


class Detector(BaseModel):
    """Takes a list of samples, as those of mmdet and mmseg do."""

    def __init__(self) -> None:
        super().__init__(data_preprocessor=Whole())
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor, data_samples: list[dict], mode: str) -> dict:
        targets = torch.stack([sample['target'] for sample in data_samples])
        return {'loss': ((inputs @ self.weight - targets) ** 2).mean()}


def test_samples_in_a_list_are_cut_like_a_tensor() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    data = {'inputs': inputs, 'data_samples': [{'target': t} for t in torch.tensor([1.0, 0, 2])]}
    ends = []
    for pieces in (1, 2):
        model = Detector()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01))
        train_in_micro_batches(model, data, wrapper, pieces)
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)
    assert (ends[0] != 1).all()


@pytest.mark.parametrize('pieces', [1, 3])
def test_the_gradient_of_the_whole_batch_is_clipped(pieces: int) -> None:
    model = Detector()
    data = {'inputs': torch.ones(3, 2), 'data_samples': [{'target': torch.ones(())}] * 3}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    train_in_micro_batches(
        model, data, OptimWrapper(optimizer, clip_grad=dict(max_norm=0.1)), pieces
    )
    moved = (model.weight.detach() - 1).norm().item()
    assert moved == pytest.approx(0.1, rel=1e-4)  # of 2 * sqrt(2); clipping divides by 1e-6 more


def test_processes_exchange_gradients_in_the_last_piece_alone() -> None:
    """Before it they would wait for each other, after it their weights would drift apart."""
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model, exchanged = MMDistributedDataParallel(Detector(), device_ids=None), []
        model.module.register_forward_pre_hook(
            lambda *_: exchanged.append(model.require_backward_grad_sync)
        )
        data = {'inputs': torch.ones(3, 2), 'data_samples': [{'target': torch.ones(())}] * 3}
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01))
        for pieces in (1, 3):
            train_in_micro_batches(model, data, wrapper, pieces)
    finally:
        distributed.destroy_process_group()
    assert exchanged == [True, False, False, True]


def test_an_iteration_is_an_update_whatever_the_pieces(train: Callable, tmp_path: Path) -> None:
    train('sd', tmp_path / 'whole')
    train('sd', tmp_path / 'pieces', 'micro_batches=2')
    whole, pieces = (read_record(tmp_path / name / 'run.json') for name in ('whole', 'pieces'))
    assert [e['iterations'] for e in pieces['history']] == [
        e['iterations'] for e in whole['history']
    ]
    assert pieces['identity']['micro_batches'] == 2


def test_impossible_micro_batches(tiny_config: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='micro_batches is 0'):
        tiny_config('bl', tmp_path, 'micro_batches=0')
    with pytest.raises(UserError, match='1 process with 3 micro-batches each'):
        tiny_config('bl', tmp_path, 'micro_batches=3')


def test_the_rest_of_an_epoch_has_the_workers_of_a_whole_one(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """Workers ignore the signals on which the run saves and ends."""
    runner = Runner.from_cfg(tiny_config('bl', tmp_path))
    runner.train_dataloader.worker_init_fn = print
    assert runner.train_loop._batches(2).worker_init_fn is print
