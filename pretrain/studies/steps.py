"""Commands one after another, of which none that fails keeps the next from running, and a report.

``python -m pretrain.studies.steps REPORT.json MINUTES < LIST`` takes lines ``name | command``.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.cli import run
from pretrain.runs.errors import UserError


def machine() -> dict[str, str | int]:
    """What measured: the version of torch, the device and the number of cores."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return {'torch': torch.__version__, 'device': device, 'cores': os.cpu_count()}


def write_json(path: Path, content: dict) -> None:
    """Replace ``path`` in one step."""
    write_atomically(path, (json.dumps(content, indent=1) + '\n').encode())


def run_all(commands: Mapping[str, str], minutes: float, report: Path) -> None:
    """Run shell commands in turn, print what came of each, and write the report after each.

    It has :func:`machine`, for each of the ``steps`` its ``name``, ``command``, ``seconds``,
    ``error`` (a sentence, or None) and last lines of ``output``, and the ``rows`` that a benchmark
    among them wrote to the file ``$JSON``.

    Args:
        commands: the command of each name, in order. A name that ends in ``(GPU)`` is left out on a
            machine without one.
        minutes: for all of them together; what still runs then is killed, and no other begins.
        report: a JSON file.

    Raises:
        UserError: when all have run, if one failed.
    """
    end = time.monotonic() + 60 * minutes
    content = machine() | {'rows': [], 'steps': []}
    print(', '.join(f'{key} {value}' for key, value in machine().items()), flush=True)
    failed = []
    for name, command in commands.items():
        start = time.monotonic()
        error, output = 'left out: this machine has no GPU', ''
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / 'rows.json'
            if torch.cuda.is_available() or not name.endswith('(GPU)'):
                error, output = _run(command, end - start, os.environ | {'JSON': str(file)})
                failed += [name] if error else []
            if file.exists():
                content['rows'] += json.loads(file.read_text())['rows']
        spent, tail = round(time.monotonic() - start, 1), output.splitlines()[-40:]
        entry = dict(name=name, command=command, seconds=spent, error=error, output=tail)
        content['steps'].append(entry)
        write_json(report, content)
        print(f'{name}: {error or "done"} ({spent} s)', flush=True)
    if failed:
        raise UserError(f'{len(failed)} of {len(commands)} steps failed, see {report}.')


def _run(command: str, seconds: float, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """A command's error, or None, and its output."""
    if seconds <= 0:
        return 'not begun: the time was over', ''
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    shell = ['bash', '-o', 'pipefail', '-c', command]
    # In a session of its own, to be killed with all that it started.
    process = subprocess.Popen(shell, **pipes, text=True, env=environment, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as stopped:
        os.killpg(process.pid, signal.SIGKILL)
        if not isinstance(stopped, subprocess.TimeoutExpired):
            raise
        return 'stopped: the time was over', process.communicate()[0]
    if not process.returncode:
        return None, output
    lines = [line for line in output.splitlines() if line.strip()] or ['it printed nothing']
    sentences = [line for line in lines if line.startswith('error: ')] or lines
    return f'exit code {process.returncode}: {sentences[-1].strip()}', output


def main() -> None:
    listed = dict(line.split(' | ', 1) for line in sys.stdin.read().splitlines())
    run_all(listed, float(sys.argv[2]), Path(sys.argv[1]))


if __name__ == '__main__':
    run(main)
