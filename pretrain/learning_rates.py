"""The learning rate within a mini-generation: cosine annealing (Eqn 5), linear decay, or the
super-convergence that Section 3.4 suggests."""

import math
from collections.abc import Sequence

from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from pretrain.runs.errors import UserError, number_of
from pretrain.schedule import boundaries, generation


def cosine(done: int, length: int) -> float:
    """Eqn 5: the factor of the rate after ``done`` of ``length`` steps, half a cosine from 1 to 0.
    Runs with this schedule alone use mmengine's scheduler."""
    return (1 + math.cos(math.pi * done / length)) / 2


def linear(done: int, length: int) -> float:
    """A straight line from 1 to 0."""
    return 1 - done / length


def one_cycle(done: int, length: int) -> float:
    """Super-convergence (reference [38]): up from 1/25 to 1 in the first 30 % of the steps, then
    down to 1/250,000 at the last step, both along a cosine, as torch's OneCycleLR by default. The
    momentum is constant."""
    peak = 0.3 * length - 1
    if done <= peak:
        return 1 + (1 / 25 - 1) * cosine(done, peak)
    return 4e-6 + (1 - 4e-6) * cosine(done - peak, length - 1 - peak)


SHAPES = {'cosine': cosine, 'linear': linear, 'one_cycle': one_cycle}


def learning_rates(
    lengths: Sequence[int], schedule: str | Sequence[str], rates: Sequence[float] | None = None
) -> dict:
    """The learning-rate schedule of a run, as the config of an mmengine scheduler.

    The rate changes at every iteration. Eqn 5 counts the iterations of a mini-generation from 1;
    here they count from 0, so that the first runs at the full rate and the last not at rate 0.

    Args:
        lengths: L_1, ..., L_K in epochs.
        schedule: a name of ``SHAPES``, or one for each mini-generation.
        rates: α_1, ..., α_K as multiples of the optimizer's rate; None: all are 1.

    Raises:
        UserError: if a name is unknown, a rate is not above 0, or a list does not have K values.
    """
    shapes = schedule if isinstance(schedule, list | tuple) else [schedule] * len(lengths)
    weights = [1.0] * len(lengths) if rates is None else rates
    weights = list(weights) if isinstance(weights, list | tuple) else [weights]
    for name, values in (('schedule', shapes), ('rates', weights)):
        if len(values) != len(lengths):
            raise UserError(
                f'algorithm.{name} has {number_of(len(values), "values")} for '
                f'{number_of(len(lengths), "mini-generations")}: give one for each.'
            )
    if unknown := set(map(str, shapes)) - set(SHAPES):
        raise UserError(
            f'algorithm.schedule is {", ".join(unknown)}: choose from {", ".join(SHAPES)}.'
        )
    if not all(isinstance(weight, int | float) and weight > 0 for weight in weights):
        raise UserError(f'algorithm.rates is {weights}: each must be above 0.')
    common = dict(by_epoch=True, convert_to_iter_based=True)
    if set(shapes) == {'cosine'}:  # mmengine has this one
        periods = dict(periods=list(lengths), restart_weights=weights, eta_min=0.0)
        return dict(type='CosineRestartLR', **periods, **common)
    return dict(type='RestartLR', lengths=list(lengths), shapes=shapes, weights=weights, **common)


@PARAM_SCHEDULERS.register_module()
class RestartLR(_ParamScheduler):
    """A learning rate that restarts with each mini-generation.

    Args:
        optimizer: its learning rate is α.
        lengths: L_1, ..., L_K in steps.
        shapes: a name of ``SHAPES`` for each mini-generation.
        weights: α_k / α for each mini-generation.
    """

    def __init__(
        self,
        optimizer: object,
        lengths: Sequence[int],
        shapes: Sequence[str],
        weights: Sequence[float],
        **kwargs: object,
    ) -> None:
        self.lengths, self.shapes, self.weights = lengths, shapes, weights
        super().__init__(optimizer, 'lr', **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, *args: object, lengths: Sequence[int], epoch_length: int, **kwargs: object
    ) -> 'RestartLR':
        """Convert ``lengths`` from epochs to iterations; mmengine's Runner calls this."""
        lengths = [length * epoch_length for length in lengths]
        return cls(*args, lengths=lengths, **kwargs | {'by_epoch': False})

    def _get_value(self) -> list[float]:
        step = min(self.last_step, sum(self.lengths) - 1)  # mmengine steps once after the end
        k = generation(step + 1, self.lengths) - 1
        done = step - (boundaries(self.lengths)[k - 1] if k else 0)
        factor = self.weights[k] * SHAPES[self.shapes[k]](done, self.lengths[k])
        return [value * factor for value in self.base_values]
