"""The exception for a user's mistake, dicts that raise it for a missing key, and helpers for its
messages."""

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


class UserError(ValueError):
    """A user's mistake. The message is one sentence that says what to do; tools print only it."""


def lines_of(error: Exception) -> list[str]:
    """The lines of an error's message; the name of its type if the message is empty."""
    return str(error).strip().splitlines() or [type(error).__name__]


def in_one_line(error: Exception) -> str:
    """The type and the message of an error that a library or a user's file raised.

    Example:
        >>> in_one_line(ValueError('no   room'))
        'ValueError: no room'
    """
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def number_of(count: int, things: str) -> str:
    """A count with its noun: the first word that ends in -s in ``things``, which is plural.

    Example:
        >>> [number_of(count, 'tensors are missing') for count in (1, 1200)]
        ['1 tensor is missing', '1,200 tensors are missing']
    """
    if count == 1:
        things = re.sub(r'(?<=[sx])es\b|(?<!s)s\b', '', things, count=1)
        things = re.sub(r'\bare\b', 'is', re.sub(r'\bhave\b', 'has', things))
    return f'{count:,} {things}'


@cache
def warn_once(text: str) -> None:
    """Print a warning only once, because a command may check the same data for many runs."""
    print(f'warning: {text}', file=sys.stderr)


def counted(names: Sequence[str], kind: str, most: int = 20) -> str:
    """Count ``names``, which ``kind`` describes in the plural, and list up to ``most`` of them.

    Example:
        >>> counted(['a.jpg', 'b.jpg'], 'files')
        '2 files (a.jpg, b.jpg)'
    """
    more = ', ...' if len(names) > most else ''
    return f'{number_of(len(names), kind)} ({", ".join(names[:most])}{more})'


class Contents(dict):
    """The contents of a file. A missing key raises a UserError that names the file.

    Args:
        values: nested dicts and lists.
        place: the file, for the message.

    Example:
        >>> Contents({'status': 'finished'}, 'a/run.json')['history']
        Traceback (most recent call last):
        pretrain.runs.errors.UserError: a/run.json has no 'history': restore it or make it again.
    """

    def __init__(self, values: Mapping, place: object) -> None:
        def named(value: Any) -> Any:
            if isinstance(value, dict):
                return Contents(value, place)
            return [named(part) for part in value] if isinstance(value, list) else value

        super().__init__({key: named(value) for key, value in values.items()})
        self.place = place

    def __missing__(self, key: object) -> Any:
        raise UserError(f'{self.place} has no {key!r}: restore it or make it again.')
