"""Set-up of .venv, with a stand-in for Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A copy of the script that does not install: Python's stand-in fails after the choice."""
    (tmp_path / 'suite/tools').mkdir(parents=True)
    shutil.copy(ROOT / 'tools/setup.sh', tmp_path / 'suite/tools')
    (tmp_path / 'suite/requirements.txt').write_text('torch')
    python = tmp_path / 'my python/python3'
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$@" >&2\nexit 9\n')
    python.chmod(0o755)
    return tmp_path / 'suite'


def set_up(suite: Path, python: Path) -> subprocess.CompletedProcess:
    command = ['env', f'PYTHON={python}', 'bash', str(suite / 'tools/setup.sh')]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_named_python_is_taken_whatever_its_path(suite: Path) -> None:
    result = set_up(suite, suite.parent / 'my python/python3')
    assert (result.returncode, result.stderr) == (9, '-m venv --clear .venv\n')
    result = set_up(suite, suite.parent / 'none')
    assert result.returncode == 1
    assert 'error: no Python 3.11, 3.12 or 3.13 found' in result.stderr


@pytest.mark.parametrize(
    ('python', 'place', 'code'), [('', '', 0), ('gone', '', 9), ('', '/the/copied/suite', 9)]
)
def test_an_environment_that_does_not_work_here_is_set_up_again(
    python: str, place: str, code: int, suite: Path
) -> None:
    """Its Python is gone after an upgrade of the system, or it is that of a copied folder."""
    (suite / '.venv/bin').mkdir(parents=True)
    (suite / '.venv/.requirements').write_text(f'{place or suite}\ntorch\n')
    ours = suite.parent / 'my python/python3'
    (suite / '.venv/bin/python').symlink_to(python or ours)
    assert set_up(suite, ours).returncode == code
