import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.errors import UserError
from pretrain.losses import SnapshotDistillationLoss, snapshot_distillation_loss


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def reference(
    logits: np.ndarray,
    labels: np.ndarray,
    teacher: np.ndarray,
    label_weight: float,
    teacher_weight: float,
    temperature: float,
) -> tuple[float, np.ndarray]:
    """Eqn 3 in float64, picture by picture and class by class, with its analytic gradient."""
    total, gradient = 0.0, np.zeros_like(logits)
    for n, (z, label, zt) in enumerate(zip(logits, labels, teacher, strict=True)):
        p, q = softmax(z), softmax(zt / temperature)
        cross_entropy = -np.log(p[label])
        kl = sum(q[c] * (np.log(q[c]) - np.log(p[c])) for c in range(len(p)))
        total += label_weight * cross_entropy + teacher_weight * kl
        one_hot = np.eye(len(p))[label]
        gradient[n] = (label_weight + teacher_weight) * p
        gradient[n] -= label_weight * one_hot + teacher_weight * q
    return total / len(logits), gradient / len(logits)


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (5, 7)), rng.integers(0, 7, 5), rng.normal(0, 4, (5, 7))


@pytest.mark.parametrize(
    ('label_weight', 'teacher_weight', 'temperature'),
    [(1.5, 1.0, 2.0), (4 / 3, 1.0, 3.0), (0.7, 0.4, 1.0), (1.0, 0.0, 5.0)],
)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient(
    batch: tuple, label_weight: float, teacher_weight: float, temperature: float, dtype, tolerance
) -> None:
    # The tolerance is the type's rounding over a sum of 35 terms of order 1.
    logits, labels, teacher = batch
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    zt = torch.tensor(teacher, dtype=dtype, requires_grad=True)
    weights = dict(
        label_weight=label_weight, teacher_weight=teacher_weight, temperature=temperature
    )
    parts = snapshot_distillation_loss(z, torch.tensor(labels), zt, **weights)
    parts.loss.backward()
    value, gradient = reference(logits, labels, teacher, **weights)
    assert parts.loss.item() == pytest.approx(value, rel=tolerance)
    assert label_weight * parts.cross_entropy.item() + teacher_weight * parts.kl.item() == (
        pytest.approx(value, rel=tolerance)
    )
    np.testing.assert_allclose(z.grad.numpy(), gradient, atol=tolerance)
    assert zt.grad is None


def test_confident_logits_stay_finite() -> None:
    z = torch.tensor([[200.0, -200.0]], requires_grad=True)
    parts = snapshot_distillation_loss(
        z, torch.tensor([1]), -z.detach(), label_weight=1.5, teacher_weight=1.0, temperature=2.0
    )
    parts.loss.backward()
    # -log p = 400 for the label; KL = 400 against a teacher that is sure of the other class.
    assert parts.loss.item() == pytest.approx(1.5 * 400 + 400)
    assert z.grad.isfinite().all()


def test_module_without_teacher_is_cross_entropy(batch: tuple) -> None:
    logits, labels = torch.tensor(batch[0]), torch.tensor(batch[1])
    losses = SnapshotDistillationLoss(teacher_weight=1.0, temperature=2.0)(logits, labels)
    assert set(losses) == {'loss'}
    assert losses['loss'].item() == F.cross_entropy(logits, labels).item()


def test_module_beside_a_teacher(batch: tuple) -> None:
    logits, labels, teacher = (torch.tensor(a) for a in batch)
    losses = SnapshotDistillationLoss(teacher_weight=1.0, temperature=2.0)(logits, labels, teacher)
    value, _ = reference(*batch, label_weight=1.5, teacher_weight=1.0, temperature=2.0)
    assert losses['loss'].item() == pytest.approx(value, rel=1e-12)
    # mmengine adds up every key that contains 'loss'.
    assert [key for key in losses if 'loss' in key] == ['loss']


@pytest.mark.parametrize('setting', [{'temperature': 0.0}, {'teacher_weight': -1.0}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(UserError, match=f'algorithm.{next(iter(setting))}'):
        SnapshotDistillationLoss(**({'temperature': 2.0, 'teacher_weight': 1.0} | setting))
