"""The one exception that a user's mistake raises."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar('T')


class UserError(ValueError):
    """A mistake of the user's that one sentence can explain; command-line tools print it and
    exit 1, without a traceback."""


def make_all(checks: Iterable[Callable[[], T]]) -> list[T]:
    """Make all of some checks, of which each may raise a UserError, and give their results.

    Raises:
        UserError: with a line of each check that failed, when all have been made.
    """
    results, errors = [], []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError('\n'.join(errors))
    return results
