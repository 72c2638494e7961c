import math

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from pretrain.learning_rates import learning_rates
from pretrain.runs.errors import UserError

ALPHA = 0.1


def rates(config: dict, epoch_length: int, steps: int) -> list[float]:
    """What the optimizer is given at each iteration, by the Runner's way of building it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=ALPHA)
    config = config | {'optimizer': OptimWrapper(optimizer)}
    assert config.pop('convert_to_iter_based')
    kind = PARAM_SCHEDULERS.get(config.pop('type'))
    scheduler = kind.build_iter_from_epoch(**config, epoch_length=epoch_length)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]['lr'])
        scheduler.step()
    return seen


def eqn_5(length: int) -> list[float]:
    """With l - 1 - L'_{k-1}, the iterations done in this mini-generation."""
    return [0.5 * ALPHA * (1 + math.cos(done / length * math.pi)) for done in range(length)]


def straight(length: int) -> list[float]:
    return [ALPHA * (length - done) / length for done in range(length)]


def torchs_one_cycle(length: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=ALPHA, total_steps=length, cycle_momentum=False
    )
    seen = [optimizer.param_groups[0]['lr']]
    for _ in range(length - 1):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]['lr'])
    return seen


REFERENCES = {'cosine': eqn_5, 'linear': straight, 'one_cycle': torchs_one_cycle}


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize(('epochs', 'epoch_length'), [((2, 1, 3), 5), ((45, 45), 5004)])
def test_learning_rate_is_eqn_5_at_every_iteration(
    epochs: tuple[int, ...], epoch_length: int
) -> None:
    expected = [rate for n in epochs for rate in eqn_5(n * epoch_length)]
    seen = rates(learning_rates(epochs, 'cosine'), epoch_length, len(expected))
    # mmengine multiplies its way along the cosine: rounding adds up to about 1e-12 over 450,360
    # iterations, 1e-11 of the rate.
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('schedule', ['linear', 'one_cycle', ['cosine', 'one_cycle', 'linear']])
@pytest.mark.parametrize('weights', [None, [1.0, 0.5, 2.0]])
def test_each_mini_generation_has_its_schedule_and_rate(schedule: object, weights: object) -> None:
    """Unequal mini-generations; closed forms and torch's OneCycleLR."""
    epochs, epoch_length = (2, 1, 3), 7
    names = [schedule] * 3 if isinstance(schedule, str) else schedule
    expected = [
        alpha * rate
        for n, name, alpha in zip(epochs, names, weights or [1.0] * 3, strict=True)
        for rate in REFERENCES[name](n * epoch_length)
    ]
    seen = rates(learning_rates(epochs, schedule, weights), epoch_length, len(expected))
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
def test_cosine_restarts_at_another_rate() -> None:
    seen = rates(learning_rates((2, 3), 'cosine', [1.0, 0.25]), 4, 20)
    expected = [*eqn_5(8), *(0.25 * rate for rate in eqn_5(12))]
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ('schedule', 'weights', 'message'),
    [
        ('step', None, r'schedule is step: choose from cosine, linear, one_cycle'),
        (['linear'], None, 'schedule has 1 value for 2 mini-generations'),
        (None, None, 'schedule is None'),
        ([['linear'], 'cosine'], None, 'schedule is .*linear'),
        ('linear', 0.5, 'rates has 1 value for 2 mini-generations'),
        ('linear', ['a', 1.0], 'rates is .* each must be above 0'),
        ('linear', [1.0], 'rates has 1 value for 2 mini-generations'),
        ('cosine', [1.0, 0.0], r'rates is \[1.0, 0.0\]: each must be above 0'),
        ('cosine', [1.0, float('nan')], 'rates is'),
    ],
)
def test_impossible_schedules(schedule: object, weights: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learning_rates((1, 2), schedule, weights)
