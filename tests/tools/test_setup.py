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


@pytest.mark.parametrize('works', [True, False])
def test_an_environment_whose_python_is_gone_is_set_up_again(works: bool, suite: Path) -> None:
    """After an upgrade of the system, for example."""
    (suite / '.venv/bin').mkdir(parents=True)
    shutil.copy(suite / 'requirements.txt', suite / '.venv/.requirements')
    python = suite.parent / 'my python/python3'
    (suite / '.venv/bin/python').symlink_to(python if works else suite / 'gone')
    assert set_up(suite, python).returncode == (0 if works else 9)
