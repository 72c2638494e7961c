from collections.abc import Callable

import pytest

from pretrain.runs.errors import UserError, make_all


def test_all_checks_are_made() -> None:
    made = []

    def check(number: int) -> Callable[[], int]:
        def make() -> int:
            made.append(number)
            if number % 2:
                raise UserError(f'{number} is odd.')
            return number

        return make

    assert make_all(map(check, (2, 4))) == [2, 4]
    with pytest.raises(UserError, match=r'^1 is odd\.\n3 is odd\.$'):
        make_all(map(check, (1, 2, 3)))
    assert made == [2, 4, 1, 2, 3]
