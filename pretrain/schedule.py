"""When things happen: mini-generations, teachers and learning rates (Section 3.3.4).

Training is cut into K mini-generations of L_1, ..., L_K steps that end at L'_k = L_1 + ... + L_k.
A step is an iteration in the paper; every function here works for epochs as well, since the
configs give the lengths in epochs.
"""

from collections.abc import Sequence
from itertools import accumulate

from pretrain.errors import UserError


def boundaries(lengths: Sequence[int]) -> list[int]:
    """The ends L'_1, ..., L'_K of the mini-generations.

    Args:
        lengths: L_1, ..., L_K in steps, each at least 1.

    Raises:
        UserError: if there is no mini-generation or one is shorter than a step.
    """
    whole = isinstance(lengths, list | tuple) and all(isinstance(n, int) for n in lengths)
    if not whole or not lengths or min(lengths) < 1:
        raise UserError(
            f'algorithm.generations is {lengths}: give the length of each mini-generation as '
            'a whole number of at least 1, for example [45, 45].'
        )
    return list(accumulate(lengths))


def generation(step: int, lengths: Sequence[int]) -> int:
    """The mini-generation k_l, from 1 to K, of step l = ``step``, from 1 to L."""
    ends = boundaries(lengths)
    if not 1 <= step <= ends[-1]:
        raise ValueError(f'step must be from 1 to {ends[-1]}, not {step}')
    return next(k for k, end in enumerate(ends, start=1) if step <= end)


def teacher_step(step: int, lengths: Sequence[int]) -> int:
    """The step c_l whose snapshot teaches step l = ``step`` (Eqn 4); 0 in the first
    mini-generation, which has no teacher."""
    k = generation(step, lengths)
    return 0 if k == 1 else boundaries(lengths)[k - 2]


def label_weight(teacher_weight: float, temperature: float) -> float:
    """λS beside a teacher: 1 + λT/T.

    For Snapshot Distillation (λT = 1) this is the 1 + 1/T of Section 4.1, which balances the two
    gradients; for Snapshot Ensemble (λT = 0) it is the 1 of Eqn 1.
    """
    return 1.0 + teacher_weight / temperature


def cosine_restarts(lengths: Sequence[int]) -> dict:
    """Eqn 5 as mmengine config: one cosine from the optimizer's rate to 0 a mini-generation.

    ``lengths`` are epochs; the rate changes at every iteration. mmengine counts the iterations of
    a mini-generation from 0 where the literal Eqn 5 counts from 1, so that the first one runs at
    the full rate and the last one does not run at rate 0.
    """
    return dict(
        type='CosineRestartLR',
        periods=list(lengths),
        restart_weights=[1.0] * len(lengths),
        eta_min=0.0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
