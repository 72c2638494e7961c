import numpy as np
import pytest
import torch

from pretrain.metrics import TopKError


def test_errors_against_sorting() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 20)), rng.integers(0, 20, 50)
    metric = TopKError()
    for part in np.array_split(np.arange(50), 3):
        batch = {'logits': torch.tensor(logits[part]), 'labels': torch.tensor(labels[part])}
        metric.process({}, [batch])
    rank = [list(np.argsort(-z)).index(y) for z, y in zip(logits, labels, strict=True)]
    expected = {f'top{k}_error': 100 * np.mean([r >= k for r in rank]) for k in (1, 5)}
    assert metric.evaluate(size=50) == pytest.approx(expected)


def test_padding_of_the_last_batch_is_not_counted() -> None:
    metric = TopKError()
    right, wrong = torch.eye(8)[:1], torch.eye(8)[1:2]
    for logits in (right, right, wrong):  # the third pads two ranks' shares
        metric.process({}, [{'logits': logits, 'labels': torch.tensor([0])}])
    assert metric.evaluate(size=2)['top1_error'] == 0.0


def test_fewer_than_five_classes() -> None:
    metric = TopKError()
    metric.process({}, [{'logits': torch.randn(4, 3), 'labels': torch.tensor([0, 1, 2, 0])}])
    assert metric.evaluate(size=4)['top5_error'] == 0.0
