"""The soak itself, with a kill of either stage."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_it_finds_its_packages_and_says_what_it_needs() -> None:
    command = ['bash', 'tools/soak.sh', '0']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert 'argument kills' in result.stderr


def test_a_report_is_written_where_the_command_was_given(tmp_path: Path) -> None:
    tools, tests = tmp_path / 'suite/tools', tmp_path / 'suite/tests'
    for folder in (tools, tests, tmp_path / 'suite/.venv/bin'):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / 'tools/soak.sh', tools)
    (tests / 'soak.py').write_text('import sys; print(*sys.argv[1:])')
    (tmp_path / 'suite/.venv/bin/python').symlink_to(sys.executable)
    command = ['bash', 'suite/tools/soak.sh', '1', 'my report.json']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == f'1 {tmp_path}/my report.json\n'


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_change_nothing(tmp_path: Path) -> None:
    report = tmp_path / 'soak.json'
    result = subprocess.run(
        ['bash', 'tools/soak.sh', '1', str(report)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row['name']: row['value'] for row in json.loads(report.read_text())['rows']}
    for stage in ('pretraining', 'fine-tuning'):
        assert rows[f'{stage}: kills'] == 1
        assert rows[f'{stage}: runs that ended bit for bit as if never killed'] >= 1
