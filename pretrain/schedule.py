"""Mini-generations and their teachers (Section 3.3.4).

Training is divided into K mini-generations of L_1, ..., L_K steps; the k-th ends at
L'_k = L_1 + ... + L_k. A step is an iteration in the paper. All functions here also work for
epochs, the unit of the lengths in configs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def boundaries(lengths: Sequence[int]) -> list[int]:
    """The ends L'_1, ..., L'_K of the mini-generations of L_1, ..., L_K steps."""
    return list(accumulate(lengths))


def generation(step: int, lengths: Sequence[int]) -> int:
    """The mini-generation k_l, from 1 to K, that contains step l = ``step``, from 1 to L.

    Raises:
        ValueError: if ``step`` is out of this range.
    """
    ends = boundaries(lengths)
    if not 1 <= step <= ends[-1]:
        raise ValueError(f'step must be from 1 to {ends[-1]}, not {step}')
    return next(k for k, end in enumerate(ends, start=1) if step <= end)


def teacher_step(step: int, copied: Sequence[int], lag: int = 1) -> int:
    """The step c_l whose weights teach step l = ``step``: the latest copy that is at least ``lag``
    steps old; 0 if there is none, so that the step has no teacher.

    - Snapshot Distillation copies the student at the :func:`boundaries` of its mini-generations,
      and ``lag`` is 1: c_l = max{L'_k, L'_k < l} (Eqn 4).
    - A teacher that lags by m iterations has ``copied = range(1, L)``: c_l = l - m. With m = 1 it
      has the student's own weights.
    - With a copy every n iterations, ``copied = range(n, L, n)``, m / n copies wait in memory and
      m <= l - c_l < m + n.
    - A moving average includes every copy up to c_l.

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
