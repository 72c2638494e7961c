"""The first minutes on a GPU machine, here without time to run a step."""

import json
import re
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def test_every_step_is_reported_and_all_that_it_runs_exists(tmp_path: Path) -> None:
    report = tmp_path / 'report.json'
    command = ['bash', str(ROOT / 'tools/gpu_check.sh'), str(report), '0']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'error: ' in done.stdout
    assert 'no GPU' in done.stdout.splitlines()[0]
    assert report.with_suffix('.txt').read_text() == done.stdout
    steps = json.loads(report.read_text())['steps']
    assert len(steps) == 20
    for step in steps:
        out = 'left out' if step['name'].endswith('(GPU)') else 'not begun'
        assert step['error'].startswith(out), step['name']
        words = re.findall(r'(?:configs|tools|tests)/[\w/{},.]+', step['command'])
        listed = [part for word in words for part in _braces(word)]
        assert all((ROOT / path).is_file() for path in listed), listed


def _braces(word: str) -> list[str]:
    head, brace, rest = word.partition('{')
    if not brace:
        return [word]
    choices, _, tail = rest.partition('}')
    return [f'{head}{choice}{tail}' for choice in choices.split(',')]
