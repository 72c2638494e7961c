"""Commands as a user meets them: exit code and what they print."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch

from tests.conftest import ROOT


def call(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {'CUDA_VISIBLE_DEVICES': '', **environment},
    )


def start(
    tool: str, *args: str, cwd: Path = ROOT, **environment: str
) -> Callable[[], subprocess.CompletedProcess]:
    """Start a tool, such as ``tools/train.py``, in a fork of this process, which has imported what
    would take a new one many seconds. The result waits for its end."""
    streams = [tempfile.TemporaryFile('w+') for _ in range(2)]  # noqa: SIM115
    process = multiprocessing.get_context('fork').Process(
        target=_run, args=([tool, *args], cwd, environment, streams)
    )
    process.start()

    def wait() -> subprocess.CompletedProcess:
        process.join()
        for stream in streams:
            stream.seek(0)
        texts = [stream.read() for stream in streams]
        return subprocess.CompletedProcess([tool, *args], process.exitcode, *texts)

    return wait


def _run(argv: list[str], cwd: Path, environment: dict[str, str], streams: Sequence[IO]) -> None:
    os.chdir(cwd)
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = streams
    sys.argv = argv
    sys.path[:0] = filter(None, environment.get('PYTHONPATH', '').split(os.pathsep))
    torch.set_num_threads(1)  # the threads of this process's parent did not come along
    runpy.run_path(str(ROOT / argv[0]), run_name='__main__')


def assert_one_sentence(result: subprocess.CompletedProcess, *parts: str) -> None:
    """An error of the user's ends a command with code 1 and one sentence."""
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    for part in parts:
        assert part in line
