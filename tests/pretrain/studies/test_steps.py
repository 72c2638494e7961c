"""A report of many commands: none stops the others."""

import json
import os
import time
from pathlib import Path

import pytest

from pretrain.runs.errors import UserError
from pretrain.studies.steps import run_all


def test_each_step_is_reported_and_none_stops_the_others(tmp_path: Path, capsys) -> None:
    commands = {
        'fails': 'echo before; echo "error: no data." >&2; echo after; exit 3',
        'crashes': 'echo "RuntimeError: out of memory"; false | true',
        'rows': """echo '{"rows": [{"name": "x"}]}' > "$JSON"; seq 100""",
        'needs one (GPU)': 'echo never',
        'last': 'true',
    }
    report = tmp_path / 'new/report.json'
    with pytest.raises(UserError, match='2 of 5 steps failed'):
        run_all(commands, 1.0, report)
    content = json.loads(report.read_text())
    assert content['rows'] == [{'name': 'x'}]
    assert content['device'] == 'no GPU'
    assert {step['name']: step['error'] for step in content['steps']} == {
        'fails': 'exit code 3: error: no data.',
        'crashes': 'exit code 1: RuntimeError: out of memory',
        'rows': None,
        'needs one (GPU)': 'left out: this machine has no GPU',
        'last': None,
    }
    assert content['steps'][2]['output'] == [str(n) for n in range(61, 101)]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith('no GPU, cores ' + str(os.cpu_count()))
    assert printed[1].startswith('fails: exit code 3: error: no data. (')


def test_what_was_done_is_kept_if_the_rest_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / 'report.json'
    monkeypatch.setattr('subprocess.Popen', _killed_at('second'))
    with pytest.raises(KeyboardInterrupt):
        run_all({'one': 'echo first', 'two': 'echo second'}, 1.0, report)
    assert [step['name'] for step in json.loads(report.read_text())['steps']] == ['one']


def _killed_at(word: str):
    import subprocess

    class Popen(subprocess.Popen):
        def communicate(self, *args, **kwargs):
            if word in self.args[-1]:
                raise KeyboardInterrupt
            return super().communicate(*args, **kwargs)

    return Popen


def test_time_that_is_over_ends_a_step_with_all_that_it_started(tmp_path: Path) -> None:
    report, alive = tmp_path / 'report.json', tmp_path / 'alive'
    commands = {'long': f'(sleep 1; touch {alive}) & sleep 60', 'next': 'true'}
    with pytest.raises(UserError, match='2 of 2'):
        run_all(commands, 0.005, report)
    errors = [step['error'] for step in json.loads(report.read_text())['steps']]
    assert errors == ['stopped: the time was over', 'not begun: the time was over']
    time.sleep(1)
    assert not alive.exists()
