import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.build import LOSS_SETTINGS
from pretrain.losses import (
    SnapshotDistillationLoss,
    balanced_label_weight,
    snapshot_distillation_loss,
    top_score_difference,
)
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from tests.conftest import ROOT


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
    student_temperature: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Eqn 3 in float64, image by image and class by class, with its analytic gradient."""
    total, gradient = 0.0, np.zeros_like(logits)
    for n, (z, label, zt) in enumerate(zip(logits, labels, teacher, strict=True)):
        p, q = softmax(z), softmax(zt / temperature)
        soft = softmax(z / student_temperature)
        cross_entropy = -np.log(p[label])
        kl = sum(q[c] * (np.log(q[c]) - np.log(soft[c])) for c in range(len(p)))
        total += label_weight * cross_entropy + teacher_weight * kl
        one_hot = np.eye(len(p))[label]
        gradient[n] = label_weight * (p - one_hot)
        gradient[n] += teacher_weight * (soft - q) / student_temperature
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


METHODS = {
    # name of the config: λS, λT, T of the teacher and of the student in generations with a teacher
    'bl': None,
    'se': (1.0, 0.0, 1.0, 1.0),
    'sd_t2': (1.5, 1.0, 2.0, 1.0),
    'sd_t3': (4 / 3, 1.0, 3.0, 1.0),
    'symmetric': (1.5, 1.0, 2.0, 2.0),
    'kd': (1.0, 4.0, 2.0, 2.0),
    'ban': (1.0, 1.0, 1.0, 1.0),
    'tolerant': (1.0, 1.0, 1.0, 1.0),
}


def loss_of(method: str) -> SnapshotDistillationLoss:
    algorithm = load_config(ROOT / f'configs/pretrain/cifar100/resnet20_{method}.py').algorithm
    return SnapshotDistillationLoss(**{key: algorithm[key] for key in LOSS_SETTINGS})


@pytest.mark.parametrize('method', [m for m, settings in METHODS.items() if settings])
def test_every_method_beside_a_teacher(method: str, batch: tuple) -> None:
    logits, labels, teacher = batch
    z = torch.tensor(logits, requires_grad=True)
    losses = loss_of(method)(z, torch.tensor(labels), torch.tensor(teacher))
    losses['loss'].backward()
    value, gradient = reference(*batch, *METHODS[method])
    assert losses['loss'].item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(z.grad.numpy(), gradient, atol=1e-12)


@pytest.mark.parametrize('method', METHODS)
def test_every_method_without_a_teacher(method: str, batch: tuple) -> None:
    """Eqn 1, and for the tolerant teacher's patriarch its penalty."""
    logits, labels, _ = batch
    z = torch.tensor(logits, requires_grad=True)
    loss = loss_of(method)(z, torch.tensor(labels))['loss']
    loss.backward()
    total, gradient = 0.0, np.zeros_like(logits)
    for n, (row, label) in enumerate(zip(logits, labels, strict=True)):
        p = softmax(row)
        total -= np.log(p[label])
        gradient[n] = p - np.eye(len(p))[label]
        if method == 'tolerant':
            first, *others = np.argsort(-p)[:5]
            total += p[first] - sum(p[c] for c in others) / 4
            weights = np.zeros_like(p)
            weights[first], weights[others] = 1.0, -0.25
            gradient[n] += p * (weights - weights @ p)  # through the softmax
    assert loss.item() == pytest.approx(total / len(logits), rel=1e-12)
    np.testing.assert_allclose(z.grad.numpy(), gradient / len(logits), atol=1e-12)


def test_limits_of_eqn_3(batch: tuple) -> None:
    """λT = 0 is Eqn 1; at T = 1 asymmetric and symmetric distillation are the same."""
    z, labels, zt = (torch.tensor(a) for a in batch)
    off = SnapshotDistillationLoss(teacher_weight=0.0, temperature=2.0)(z, labels, zt)
    assert off['loss'].item() == F.cross_entropy(z, labels).item()
    at_one = [
        SnapshotDistillationLoss(teacher_weight=1.0, temperature=t, symmetric=symmetric)(
            z, labels, zt
        )['loss'].item()
        for t in (1.0, 2.0)
        for symmetric in (False, True)
    ]
    assert at_one[0] == at_one[1]
    assert at_one[2] != pytest.approx(at_one[3], rel=1e-3)


def test_score_difference_of_few_classes() -> None:
    # Two classes: p1 - p2 of softmax([log 3, 0]).
    logits = torch.tensor([[np.log(3.0), 0.0]])
    assert top_score_difference(logits).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    'setting',
    [
        {'temperature': 0.0},
        {'temperature': -2.0},
        {'temperature': float('nan')},
        {'teacher_weight': -1.0},
        {'label_weight': -1.0},
        {'confidence_penalty': -0.1},
    ],
)
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(UserError, match=f'algorithm.{next(iter(setting))}'):
        SnapshotDistillationLoss(**({'temperature': 2.0, 'teacher_weight': 1.0} | setting))


def test_knowledge_distillation_against_repdistiller() -> None:
    """T = 4 for both and λT = T²: the figure of DistillKL of RepDistiller (b84f547)."""
    steps = torch.arange(18, dtype=torch.float64)
    z, zt = (steps * 2.1).sin().view(3, 6) * 3, (steps * 0.9).sin().view(3, 6) * 4
    loss = SnapshotDistillationLoss(16.0, 4.0, label_weight=0.0, symmetric=True)
    value = loss(z, torch.zeros(3, dtype=torch.long), zt)['loss'].item()
    assert value == pytest.approx(4.976033219341437, rel=1e-12)


def test_label_refinery_learns_the_teachers_labels_alone(batch: tuple) -> None:
    """Cross-entropy with the teacher's scores as labels (reference [2]), but for their entropy,
    which is constant; the true labels have no part in it."""
    logits, labels, teacher = (torch.tensor(array) for array in batch)
    loss = SnapshotDistillationLoss(1.0, 1.0, label_weight=0.0)
    z = logits.clone().requires_grad_()
    value = loss(z, labels, teacher)['loss']
    value.backward()
    total, gradient = 0.0, np.zeros(z.shape)
    for n, (student, target) in enumerate(zip(batch[0], batch[2], strict=True)):
        p, q = softmax(student), softmax(target)
        total += sum(-q[c] * np.log(p[c]) + q[c] * np.log(q[c]) for c in range(len(p)))
        gradient[n] = (p - q) / len(logits)
    assert value.item() == pytest.approx(total / len(logits), rel=1e-12)
    np.testing.assert_allclose(z.grad, gradient, atol=1e-12)
    assert loss(logits, (labels + 1) % 7, teacher)['loss'].item() == value.item()


def test_label_weight_balances_the_teacher() -> None:
    assert balanced_label_weight(teacher_weight=1.0, temperature=2.0) == 1.5
    assert balanced_label_weight(teacher_weight=1.0, temperature=3.0) == pytest.approx(4 / 3)
    assert balanced_label_weight(teacher_weight=0.0, temperature=2.0) == 1.0
