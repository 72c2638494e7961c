import numpy as np
import pytest

from pretrain.schedule import boundaries, generation, teacher_step

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
