"""What an import of ours may do: register our own classes, and nothing else."""

import subprocess
import sys

from tests.conftest import ROOT

IMPORT_EVERYTHING = """
import importlib
import sys
from pathlib import Path

import matplotlib.pyplot  # six, which it needs, has an importer of its own
from mmengine.fileio.backends import registry_utils
from mmengine.runner.checkpoint import CheckpointLoader


def state():
    backends = registry_utils.backends | registry_utils.prefix_to_backends
    return list(sys.meta_path), dict(CheckpointLoader._schemes), backends


before = state()
modules = [
    '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
    for folder in ('pretrain', 'downstream', 'tools')
    for path in sorted(Path(folder).rglob('*.py'))
]
for name in modules:
    importlib.import_module(name)
assert state() == before, (state(), before)

from pretrain.runs.checkpoint import install

install()
assert state()[1] != before[1], 'this test would not see a change'
print(len(modules))
"""


def test_an_import_changes_nothing_elsewhere() -> None:
    result = subprocess.run(
        [sys.executable, '-c', IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 40
