import numpy as np
import pytest

from pretrain.runs.errors import UserError
from pretrain.schedule import (
    balanced_label_weight,
    boundaries,
    check_copies,
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
    copied = boundaries(lengths)
    assert [teacher_step(l, copied) for l in steps.tolist()] == reference.tolist()  # noqa: E741


@pytest.mark.parametrize('lengths', [SHORT, (7,)])
def test_generation_counts_the_boundaries_passed(lengths: tuple[int, ...]) -> None:
    expected = [k for k, length in enumerate(lengths, start=1) for _ in range(length)]
    assert [generation(step, lengths) for step in range(1, sum(lengths) + 1)] == expected


def test_epochs_of_the_real_schedule() -> None:
    teachers = [teacher_step(epoch, [45, 90]) for epoch in range(1, 91)]
    assert teachers == [0] * 45 + [45] * 45


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


@pytest.mark.parametrize(('lag', 'every'), [(1, 1), (3, 1), (4, 2), (2, 5), (30, 1)])
def test_general_teacher_against_a_search(lag: int, every: int) -> None:
    """Of all copies so far, the newest that is old enough; EMA and PS-KD are such settings too."""
    length = 23
    copied = range(every, length, every)
    for step in range(1, length + 1):
        old = [c for c in range(1, step) if c % every == 0 and step - c >= lag]
        assert teacher_step(step, copied, lag) == max(old, default=0)
        if every == 1:
            assert teacher_step(step, copied, lag) == max(0, step - lag)  # c_l = l - m
        if lag == 1:  # equal mini-generations of ``every`` iterations (Eqn 4)
            ends = boundaries([every] * (length // every + 1))
            assert teacher_step(step, copied) == teacher_step(step, ends)


@pytest.mark.parametrize(
    ('every', 'lag', 'decay', 'message'),
    [
        (0, None, None, 'copy_every is 0'),
        (1, -1, None, 'lag is -1'),
        (1, 2.5, None, 'lag is 2.5'),
        (1, None, 0.0, 'decay is 0.0: it must be above 0 and below 1'),
        (1, None, 1.0, 'decay is 1.0'),
        (1, None, float('nan'), 'decay is nan'),
        (None, 5, None, 'need algorithm.copy_every'),
        (None, None, 0.9, 'need algorithm.copy_every'),
        (2, 391, None, 'keeps 195 copies .*: set copy_every to 8 or more'),
    ],
)
def test_impossible_copies(every: object, lag: object, decay: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_copies(every, lag, decay)


def test_possible_copies() -> None:
    for setting in ((None, None, None), (1, None, 0.999), (8, 391, None), (1, 50, 0.5)):
        check_copies(*setting)
