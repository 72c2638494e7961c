"""When things happen: mini-generations and teachers (Section 3.3.4).

Training is cut into K mini-generations of L_1, ..., L_K steps that end at L'_k = L_1 + ... + L_k.
A step is an iteration in the paper; every function here works for epochs as well, since the
configs give the lengths in epochs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from pretrain.runs.errors import UserError

MOST_COPIES = 50  # of the student, which wait in memory until they teach


def mini_generations(
    epochs: int, generations: int | Sequence[int], whole: bool = False
) -> list[int]:
    """The lengths L_1, ..., L_K in epochs.

    Args:
        epochs: the length of a run of one generation.
        generations: K, for equal mini-generations, or the lengths themselves.
        whole: whether each of the K is a whole generation of ``epochs``, as in the methods that
            Section 2 compares with.

    Raises:
        UserError: if K does not divide ``epochs``, or the lengths do not add up to it.
    """
    if not _is_positive_int(epochs):
        raise UserError(f'epochs is {epochs}: it must be a whole number of at least 1.')
    if _is_positive_int(generations):
        if whole:
            return [epochs] * generations
        if epochs % generations:
            raise UserError(
                f'algorithm.generations={generations} does not divide epochs={epochs}: choose a '
                'number that does, or give the lengths themselves, for example [45, 45].'
            )
        return [epochs // generations] * generations
    lengths = generations if isinstance(generations, list | tuple) else []
    if not lengths or not all(map(_is_positive_int, lengths)):
        raise UserError(
            f'algorithm.generations is {generations}: give their number, or the length of each in '
            'epochs as a whole number of at least 1, for example [45, 45].'
        )
    if sum(lengths) != epochs:
        raise UserError(
            f'algorithm.generations={list(lengths)} add up to {sum(lengths)} epochs, not to '
            f'epochs={epochs}: change the one or the other.'
        )
    return list(lengths)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def boundaries(lengths: Sequence[int]) -> list[int]:
    """The ends L'_1, ..., L'_K of the mini-generations of L_1, ..., L_K steps."""
    return list(accumulate(lengths))


def generation(step: int, lengths: Sequence[int]) -> int:
    """The mini-generation k_l, from 1 to K, of step l = ``step``, from 1 to L."""
    ends = boundaries(lengths)
    if not 1 <= step <= ends[-1]:
        raise ValueError(f'step must be from 1 to {ends[-1]}, not {step}')
    return next(k for k, end in enumerate(ends, start=1) if step <= end)


def teacher_step(step: int, copied: Sequence[int], lag: int = 1) -> int:
    """The step c_l whose weights teach step l = ``step``: the last one that was copied at least
    ``lag`` steps before; 0 if there is none, and then no teacher.

    - Snapshot Distillation copies the student at the :func:`boundaries` of its mini-generations,
      and ``lag`` is 1: c_l = max{L'_k, L'_k < l} (Eqn 4).
    - A teacher that lags by m iterations has ``copied = range(1, L)``: c_l = l - m. With m = 1 it
      has the weights that the student has.
    - A copy every n iterations, ``range(n, L, n)``, needs the memory of lag / n copies:
      m <= l - c_l < m + n.
    - A moving average takes in each copy up to c_l.

    Args:
        step: l, from 1.
        copied: the steps after which the student is copied, in ascending order.
        lag: m, at least 1.

    Example:
        >>> [teacher_step(step, boundaries([2, 3])) for step in (1, 2, 3, 4, 5)]
        [0, 0, 2, 2, 2]
        >>> [teacher_step(step, range(1, 5), lag=2) for step in (1, 2, 3, 4, 5)]
        [0, 0, 1, 2, 3]
    """
    count = bisect_right(copied, step - lag)
    return copied[count - 1] if count else 0


def check_copies(every: int | None, lag: int | None, decay: float | None) -> None:
    """Make sure that a teacher of copies of the student can work.

    Args:
        every: iterations between two copies; None: the ends of the mini-generations.
        lag: the least age of a copy that teaches, in iterations.
        decay: of a moving average.

    Raises:
        UserError: if a number is out of range, or more than ``MOST_COPIES`` copies would wait.
    """
    for name, value in (('copy_every', every), ('lag', lag)):
        if value is not None and not _is_positive_int(value):
            raise UserError(f'algorithm.{name} is {value}: it must be a whole number above 0.')
    if decay is not None and not (isinstance(decay, int | float) and 0 < decay < 1):
        raise UserError(f'algorithm.decay is {decay}: it must be above 0 and below 1.')
    if every is None and (lag or decay):
        raise UserError('algorithm.lag and decay need algorithm.copy_every: set it, for example 1.')
    if every and (lag or 1) > MOST_COPIES * every:
        raise UserError(
            f'algorithm.lag={lag} with copy_every={every} keeps {lag // every} copies of the '
            f'student in memory: set copy_every to {-(-lag // MOST_COPIES)} or more.'
        )


def balanced_label_weight(teacher_weight: float, temperature: float) -> float:
    """λS beside a teacher: 1 + λT/T.

    For Snapshot Distillation (λT = 1) this is the 1 + 1/T of Section 4.1, which balances the two
    gradients; for Snapshot Ensemble (λT = 0) it is the 1 of Eqn 1.
    """
    return 1.0 + teacher_weight / temperature
