import pytest

from pretrain.algorithm_checks import check_copies, check_epochs, mini_generations
from pretrain.runs.errors import UserError


@pytest.mark.parametrize(
    ('epochs', 'generations', 'lengths'),
    [(164, 4, [41] * 4), (90, 1, [90]), (7, [4, 3], [4, 3]), (7, (7,), [7])],
)
def test_lengths_of_the_mini_generations(epochs: int, generations: object, lengths: list) -> None:
    assert mini_generations(epochs, generations) == lengths


def test_whole_generations_are_as_long_as_a_run() -> None:
    assert mini_generations(164, 3, whole=True) == [164, 164, 164]
    # As in the config that a run leaves in its folder.
    assert mini_generations(164, [164, 164], whole=True) == [164, 164]
    with pytest.raises(UserError, match=r'each generation has epochs=164: give the number'):
        mini_generations(164, [40, 124], whole=True)


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


@pytest.mark.parametrize(
    ('taught_after', 'kept', 'message'),
    [
        *((wrong, [], f'taught_after is {wrong}') for wrong in (-1, 2.5, 4, 'x', None)),
        *((0, [1, wrong], 'keep_epochs is') for wrong in (0, 4, 1.5, 'x', [1])),
    ],
)
def test_epochs_that_a_run_does_not_have(taught_after: object, kept: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_epochs(3, taught_after, kept)


def test_epochs_of_a_run() -> None:
    check_epochs(3, 3, [1, 3])
