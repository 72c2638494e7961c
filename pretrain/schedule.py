"""When things happen: mini-generations, teachers and learning rates (Section 3.3.4).

Training is cut into K mini-generations of L_1, ..., L_K steps that end at L'_k = L_1 + ... + L_k.
A step is an iteration in the paper; every function here works for epochs as well, since the
configs give the lengths in epochs.
"""

from collections.abc import Sequence
from itertools import accumulate

from pretrain.runs.errors import UserError


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


def teacher_step(step: int, lengths: Sequence[int]) -> int:
    """The step c_l whose snapshot teaches step l = ``step`` (Eqn 4); 0 in the first
    mini-generation, which has no teacher."""
    k = generation(step, lengths)
    return 0 if k == 1 else boundaries(lengths)[k - 2]


def balanced_label_weight(teacher_weight: float, temperature: float) -> float:
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
