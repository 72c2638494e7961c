"""Checks of the algorithm's settings before a run; each error is one sentence."""

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

from mmengine.config import Config

from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError, number_of

MOST_COPIES = 50  # copies of the student that may wait in memory at once


@cache
def defaults() -> dict[str, Any]:
    """The settings that every pretraining config inherits."""
    return load_config('configs/_base_/pretrain/classification.py').to_dict()


def check_method_names(config: Config) -> None:
    """Raise a UserError if a setting of the method does not exist, for example a misspelt one."""
    for part in ('algorithm', 'teacher', 'initial'):
        known = defaults()[part]
        for name in config[part]:
            if name not in known:
                (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise UserError(f'There is no {part}.{name}: did you mean {part}.{near}?')


def mini_generations(
    epochs: int, generations: int | Sequence[int], whole: bool = False
) -> list[int]:
    """The lengths L_1, ..., L_K of the mini-generations in epochs.

    Args:
        epochs: the length of a run of one generation.
        generations: K, for equal mini-generations, or the lengths themselves.
        whole: whether K means whole generations of ``epochs`` each, as in the methods that Section
            2 compares with.

    Raises:
        UserError: if K does not divide ``epochs``, the lengths do not add up to it, the length of a
            whole generation is not ``epochs``, or one is not a whole number above 0.
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
            f'algorithm.generations is {generations}: give the number of mini-generations, or a '
            'list of their lengths in epochs, each at least 1, for example [45, 45].'
        )
    if whole:
        if {*lengths} != {epochs}:
            raise UserError(
                f'algorithm.generations={list(lengths)}: with algorithm.fresh_student each '
                f'generation has epochs={epochs}: give the number of generations.'
            )
        return list(lengths)
    if sum(lengths) != epochs:
        raise UserError(
            f'algorithm.generations={list(lengths)} add up to '
            f'{number_of(sum(lengths), "epochs")}, not to epochs={epochs}: change one of them.'
        )
    return list(lengths)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_epochs(epochs: int, taught_after: object, keep_epochs: Sequence[object]) -> None:
    """Raise a UserError unless ``taught_after`` is from 0 to ``epochs`` and each of ``keep_epochs``
    from 1 to ``epochs``."""
    if taught_after not in range(epochs + 1):
        raise UserError(f'algorithm.taught_after is {taught_after}: give 0 to {epochs} epochs.')
    if not all(epoch in range(1, epochs + 1) for epoch in keep_epochs):
        raise UserError(f'keep_epochs is {keep_epochs}: give epochs from 1 to {epochs}.')


def check_copies(every: int | None, lag: int | None, decay: float | None) -> None:
    """Check the settings of a teacher that copies the student within a run.

    Args:
        every: iterations between two copies, at least 1; None: the ends of the mini-generations.
        lag: the least age of a copy that teaches, in iterations, at least 1; None for 1.
        decay: of a moving average, between 0 and 1; None for no average.

    Raises:
        UserError: if a number is out of range, ``every`` is missing, or more than ``MOST_COPIES``
            copies would wait.
    """
    for name, value in (('copy_every', every), ('lag', lag)):
        if value is not None and not _is_positive_int(value):
            raise UserError(f'algorithm.{name} is {value}: it must be a whole number above 0.')
    if decay is not None and not (isinstance(decay, int | float) and 0 < decay < 1):
        raise UserError(f'algorithm.decay is {decay}: it must be above 0 and below 1.')
    if every is None and (lag or decay):
        raise UserError(
            'algorithm.lag and decay need algorithm.copy_every: set it, for example to 1.'
        )
    if every and (lag or 1) > MOST_COPIES * every:
        raise UserError(
            f'algorithm.lag={lag} with copy_every={every} keeps {lag // every} copies of the '
            f'student in memory: set copy_every to {-(-lag // MOST_COPIES)} or more.'
        )
