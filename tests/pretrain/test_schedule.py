import math

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from pretrain.runs.errors import UserError
from pretrain.schedule import (
    balanced_label_weight,
    cosine_restarts,
    generation,
    mini_generations,
    teacher_step,
)

SHORT = (4, 2, 3)
IMAGENET = (45 * 5004, 45 * 5004)  # Section 4.2 in iterations: 1,281,167 // 256 = 5004 an epoch


@pytest.mark.parametrize('lengths', [SHORT, IMAGENET, (7,)])
def test_teacher_is_eqn_4_at_every_iteration(lengths: tuple[int, ...]) -> None:
    steps = np.arange(1, sum(lengths) + 1)
    ends = np.cumsum(lengths)
    # max{L'_k : L'_k < l}, and 0 where there is none, as the paper writes it.
    reference = np.where(ends[:, None] < steps, ends[:, None], 0).max(axis=0)
    assert [teacher_step(l, lengths) for l in steps.tolist()] == reference.tolist()  # noqa: E741


@pytest.mark.parametrize('lengths', [SHORT, (7,)])
def test_generation_counts_the_boundaries_passed(lengths: tuple[int, ...]) -> None:
    expected = [k for k, length in enumerate(lengths, start=1) for _ in range(length)]
    assert [generation(step, lengths) for step in range(1, sum(lengths) + 1)] == expected


def test_epochs_of_the_real_schedule() -> None:
    teachers = [teacher_step(epoch, (45, 45)) for epoch in range(1, 91)]
    assert teachers == [0] * 45 + [45] * 45


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize(('epochs', 'epoch_length'), [((2, 1, 3), 5), ((45, 45), 5004)])
def test_learning_rate_is_eqn_5_at_every_iteration(
    epochs: tuple[int, ...], epoch_length: int
) -> None:
    alpha = 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=alpha)
    config = cosine_restarts(epochs) | {'optimizer': OptimWrapper(optimizer)}
    config.pop('convert_to_iter_based')
    kind = PARAM_SCHEDULERS.get(config.pop('type'))
    scheduler = kind.build_iter_from_epoch(**config, epoch_length=epoch_length)
    worst = 0.0
    for length in (n * epoch_length for n in epochs):
        for done in range(length):  # l - 1 - L'_{k-1}: the iterations done in this mini-generation
            rate = 0.5 * alpha * (1 + math.cos(done / length * math.pi))
            worst = max(worst, abs(optimizer.param_groups[0]['lr'] - rate))
            scheduler.step()
    # mmengine multiplies its way along the cosine: rounding adds up to about 1e-12 over 450,360
    # iterations, 1e-11 of the rate.
    assert worst < 1e-9


def test_label_weight_balances_the_teacher() -> None:
    assert balanced_label_weight(teacher_weight=1.0, temperature=2.0) == 1.5
    assert balanced_label_weight(teacher_weight=1.0, temperature=3.0) == pytest.approx(4 / 3)
    assert balanced_label_weight(teacher_weight=0.0, temperature=2.0) == 1.0


@pytest.mark.parametrize(
    ('epochs', 'generations', 'lengths'),
    [(164, 4, [41] * 4), (90, 1, [90]), (7, [4, 3], [4, 3]), (7, (7,), [7])],
)
def test_lengths_of_the_mini_generations(epochs: int, generations: object, lengths: list) -> None:
    assert mini_generations(epochs, generations) == lengths


def test_whole_generations_are_as_long_as_a_run() -> None:
    assert mini_generations(164, 3, whole=True) == [164, 164, 164]


@pytest.mark.parametrize(
    ('epochs', 'generations', 'message'),
    [
        (164, 3, 'generations=3 does not divide epochs=164'),
        (9, [4, 4], r'generations=\[4, 4\] add up to 8 epochs, not to epochs=9'),
        (0, 1, 'epochs is 0'),
        ('x', 1, 'epochs is x'),
        *(
            (3, wrong, 'generations is')
            for wrong in (0, -1, True, 1.5, [], [0, 3], [1.5, 1.5], 'x')
        ),
    ],
)
def test_impossible_lengths(epochs: object, generations: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mini_generations(epochs, generations)


@pytest.mark.parametrize('step', [0, 10])
def test_step_outside_training(step: int) -> None:
    with pytest.raises(ValueError, match='from 1 to 9'):
        generation(step, SHORT)
