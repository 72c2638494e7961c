import pwd
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.runs.cli import run
from pretrain.runs.errors import UserError


def raises(error: Exception) -> Callable[[], None]:
    def main() -> None:
        assert '--traceback' not in sys.argv
        raise error

    return main


WORKER = """Caught FileNotFoundError in DataLoader worker process 0.
Original Traceback (most recent call last):
FileNotFoundError: [Errno 2] No such file or directory: 'a.jpg'
"""


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (UserError('Do this.'), 'error: Do this.'),
        (OSError(28, 'No space left on device', 'epoch_1.pth'), 'epoch_1.pth: No space left'),
        (FileNotFoundError(WORKER), "No such file or directory: 'a.jpg'"),
    ],
)
@pytest.mark.parametrize('shown', [False, True])
def test_what_goes_wrong_is_one_sentence(
    error: Exception,
    sentence: str,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, 'argv', ['tool', *['--traceback'] * shown, 'argument'])
    with pytest.raises(SystemExit) as stopped:
        run(raises(error))
    assert sentence in stopped.value.code
    assert stopped.value.code.startswith('error: ')
    assert '\n' not in stopped.value.code
    assert ('Traceback' in capsys.readouterr().err) == shown


def test_a_fault_of_the_program_says_where_to_report_it(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match=r'error: .*report .* issue'):
        run(raises(KeyError('x')))
    assert 'KeyError' in capsys.readouterr().err


def test_a_user_without_a_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setenv('HOME', '')
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    run(lambda: Path.home().rmdir())
