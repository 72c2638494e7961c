import numpy as np
import pytest
import torch

from pretrain.metrics import TopKError, TrainingStatistics, compare


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


@pytest.mark.parametrize(('classes', 'has_top5'), [(1, False), (3, False), (5, False), (6, True)])
def test_five_classes_or_fewer_have_no_top5_error(classes: int, has_top5: bool) -> None:
    metric = TopKError()
    metric.process({}, [{'logits': torch.randn(4, classes), 'labels': torch.zeros(4).long()}])
    assert ('top5_error' in metric.evaluate(size=4)) is has_top5


def test_mmengine_does_not_warn_of_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    warned = []
    monkeypatch.setattr(
        'mmengine.evaluator.metric.print_log', lambda *line, **_: warned.append(line)
    )
    TopKError()
    assert not warned


def entropy(p: np.ndarray) -> float:
    return -sum(x * np.log(x) for x in p)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def test_training_statistics_against_a_loop() -> None:
    """Batches of different sizes, T = 3, float64."""
    rng = np.random.default_rng(0)
    z, zt, labels = rng.normal(0, 2, (11, 6)), rng.normal(0, 3, (11, 6)), rng.integers(0, 6, 11)
    statistics = TrainingStatistics()
    for part in (slice(0, 4), slice(4, 11)):
        logits = torch.tensor(z[part], requires_grad=True)
        teacher_logits = torch.tensor(zt[part])
        log_student, log_teacher = (s.log_softmax(dim=1) for s in (logits, teacher_logits / 3.0))
        statistics.add(
            *compare(log_student, torch.tensor(labels[part]), log_teacher, teacher_logits)
        )
    rows = []
    for a, b, y in zip(z, zt, labels, strict=True):
        p, q = softmax(a), softmax(b / 3.0)
        rows.append(
            [
                100.0 * (np.argmax(a) != y),
                entropy(p),
                100.0 * (np.argmax(b) != y),
                entropy(q),
                100.0 * (np.argmax(a) == np.argmax(b)),
                sum(r * np.log(r / p[c]) for c, r in enumerate(softmax(b))),
            ]
        )
    names = ('error', 'entropy', 'teacher_error', 'teacher_entropy', 'agreement', 'difference')
    expected = dict(zip(names, np.mean(rows, axis=0), strict=True))
    assert statistics.mean() == pytest.approx(expected, rel=1e-12)


def test_training_statistics_without_a_teacher() -> None:
    statistics = TrainingStatistics()
    scores = torch.tensor([[4.0, 0.0], [0.0, 4.0]]).log_softmax(dim=1)
    statistics.add(*compare(scores, torch.tensor([0, 0])))
    assert statistics.mean().keys() == {'error', 'entropy'}
    assert statistics.mean()['error'] == 50.0
    statistics.clear()
    statistics.add(*compare(scores, torch.tensor([0, 1])))
    assert statistics.mean()['error'] == 0.0
