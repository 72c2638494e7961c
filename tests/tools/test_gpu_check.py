"""The first minutes on a GPU machine: each step is reported, and none stops the others."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / 'tools/gpu_check.sh'


def check(report: Path, script: Path = SCRIPT, minutes: str = '0') -> list[str]:
    """What the check prints, which its report holds as well."""
    command = ['bash', str(script), str(report), minutes]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert report.read_text() == done.stdout
    content = json.loads(report.with_suffix('.json').read_text())
    lines = done.stdout.splitlines()[1 : 1 + len(content['steps'])]
    assert lines == ['{step}: {result} ({seconds} s)'.format(**step) for step in content['steps']]
    return done.stdout.splitlines()


def with_steps(folder: Path, steps: str, end: str = '$end') -> Path:
    """The check with other steps, which it takes from a list as it takes its own."""
    head, rest = SCRIPT.read_text().split('done <<LIST')
    assert '\nend=' in head
    # To ask torch for its GPUs takes seconds.
    head, machines = re.subn(r"machine=.*?'\)\n", "machine='no GPU'\n", head, flags=re.DOTALL)
    assert machines == 1
    head = head.replace('\nnumber=', f'\nend={end}\nnumber=')
    head = head.replace('"$(dirname "${BASH_SOURCE[0]}")/.."', f"'{ROOT}'")
    script = folder / 'check.sh'
    script.write_text(f'{head}done <<LIST\n{steps}\nLIST\n' + rest.split('\nLIST\n')[1])
    return script


def test_every_step_is_reported_and_all_that_it_runs_exists(tmp_path: Path) -> None:
    machine, *lines, error = check(tmp_path / 'new/report.txt')
    assert re.fullmatch(f'torch .*, no GPU, {os.cpu_count()} cores', machine)
    steps = re.search('<<LIST\n(.*)\nLIST\n', SCRIPT.read_text(), re.DOTALL)[1].splitlines()
    assert len(steps) == len(lines) == 21
    for step, line in zip(steps, lines, strict=True):
        name, command = step.split(' | ', 1)
        out = 'left out: this machine' if name.endswith('(GPU)') else 'not started: out of time'
        assert line.startswith(f'{name}: {out}')
        command = command.replace('$cifar', 'configs/pretrain/cifar100')
        words = re.findall(r'(?:configs|tools|tests)/[\w/{},.]+', command)
        listed = [part for word in words for part in _braces(word)]
        assert all((ROOT / path).is_file() for path in listed), listed
    assert error.startswith('error: 9 of 21 steps failed')


def test_none_stops_the_others(tmp_path: Path) -> None:
    steps = [
        'fails | echo before; echo "error: no data." >&2; echo after; exit 3',
        'crashes | echo "RuntimeError: out of memory"; echo; false | true',
        """rows | echo '{"rows": [{"name": "x", "value": 2, "unit": "", "goal": null}]}' """
        '> "\\$JSON"; seq 100',
        'needs one (GPU) | echo never',
        'short | echo one; echo two',
        'last | true',
    ]
    report = tmp_path / 'report.txt'
    _, *lines = check(report, with_steps(tmp_path, '\n'.join(steps)), '60')
    assert [re.sub(r' \(\d+ s\)$', '', line) for line in lines[:6]] == [
        'fails: exit code 3: error: no data.',
        'crashes: exit code 1: RuntimeError: out of memory',
        'rows: done',
        'needs one (GPU): left out: this machine has no GPU',
        'short: done: one two',
        'last: done',
    ]
    assert any(line.split() == ['|', 'x', '|', '2', '|', '|', '|'] for line in lines[6:])
    assert lines[-1].startswith('error: 2 of 6 steps failed')
    (measured,) = json.loads(report.with_suffix('.json').read_text())['measured']
    assert measured['rows'][0]['name'] == 'x'
    log = (tmp_path / 'report.steps/3.log').read_text().split()
    assert log == [str(number) for number in range(1, 101)]


def test_an_environment_without_the_suite_finds_it(tmp_path: Path) -> None:
    """Such as one made for OpenMMLab, of which the check takes python3."""
    script = with_steps(tmp_path, 'path | echo "\\$PYTHONPATH"; false')
    assert f'path: exit code 1: {ROOT}' in check(tmp_path / 'report.txt', script, '60')[1]


def test_what_was_done_is_kept_if_the_rest_is_killed(tmp_path: Path) -> None:
    report = tmp_path / 'report.txt'
    script = with_steps(tmp_path, 'one | echo first\ntwo | kill -KILL $$')
    done = subprocess.run(['bash', str(script), str(report), '60'], capture_output=True)
    assert done.returncode == -9
    assert report.read_text().splitlines()[1].startswith('one: done: first (')


def test_time_that_is_over_ends_a_step_with_all_that_it_started(tmp_path: Path) -> None:
    begun = tmp_path / 'begun'
    steps = f'long | (echo \\$BASHPID > {begun}; exec sleep 60) & sleep 60\nnext | true'
    script = with_steps(tmp_path, steps, '$((SECONDS + 2))')
    _, *lines, error = check(tmp_path / 'report.txt', script)
    assert [line.split(' (')[0] for line in lines] == [
        'long: stopped: out of time',
        'next: not started: out of time',
    ]
    assert '2 of 2 steps failed' in error
    assert ended(begun)


def test_a_folder_is_no_report_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'kept').write_text('')
    done = subprocess.run(['bash', str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f'error: {tmp_path} is not a file: name one for the report' in done.stderr
    assert (tmp_path / 'kept').exists()


def test_steps_set_their_time_within_that_of_the_check(tmp_path: Path) -> None:
    """A timeout without --foreground leaves the process group that ends with the check."""
    assert re.findall(r'\btimeout \d+ ', SCRIPT.read_text()) == []
    begun = tmp_path / 'begun'
    steps = f"long | timeout --foreground 60 bash -c 'echo \\$\\$ > {begun}; exec sleep 60'"
    script = with_steps(tmp_path, steps, '$((SECONDS + 2))')
    check(tmp_path / 'a report.txt', script)
    assert ended(begun)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_check_and_its_step(number: int, code: int, tmp_path: Path) -> None:
    begun = tmp_path / 'begun'
    steps = f'long | (echo \\$BASHPID > {begun}; exec sleep 60); true\nnext | true'
    script = with_steps(tmp_path, steps, '60')
    process = subprocess.Popen(
        ['bash', str(script), str(tmp_path / 'report.txt'), '60'],
        # If these tests run in the background, their shell ignores SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + 60
        while not (begun.exists() and begun.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == code
    finally:
        process.kill()
    assert 'next' not in (tmp_path / 'report.txt').read_text()
    assert ended(begun)


def ended(begun: Path) -> bool:
    """Whether the process that wrote its number ends within seconds, long before its minute."""
    stat = Path('/proc', begun.read_text().strip(), 'stat')
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if stat.read_text().rpartition(')')[2].split()[0] == 'Z':  # its parent is not waiting
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def _braces(word: str) -> list[str]:
    head, brace, rest = word.partition('{')
    if not brace:
        return [word]
    choices, _, tail = rest.partition('}')
    return [f'{head}{choice}{tail}' for choice in choices.split(',')]
