"""What may import what, and what an import may do: register our own classes, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ('folder', 'allowed'),
    [
        ('pretrain/runs', ['pretrain.runs']),
        ('pretrain', ['pretrain']),
        ('downstream', ['downstream', 'pretrain']),
        ('tools', ['downstream', 'pretrain']),
    ],
)
def test_imports_go_one_way(folder: str, allowed: list[str]) -> None:
    files = sorted((ROOT / folder).rglob('*.py'))
    assert files
    upward = [
        f'{path.relative_to(ROOT)} imports {module}'
        for path in files
        for module in imported(path)
        if module.split('.')[0] in ('pretrain', 'downstream', 'tools', 'tests')
        and not any(f'{module}.'.startswith(f'{room}.') for room in allowed)
    ]
    assert upward == []


def imported(path: Path) -> list[str]:
    """The modules that a file imports, anywhere in it."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: a relative import'
            # What is imported from a package may be a module of it.
            modules += [f'{node.module}.{alias.name}' for alias in node.names]
    return modules


HELP = """
import runpy
import sys

sys.argv = [{tool!r}, '--help']
try:
    runpy.run_path({tool!r}, run_name='__main__')
except SystemExit as stop:
    assert not stop.code
loaded = sorted({{'torch', 'mmengine', 'numpy', 'matplotlib'}} & sys.modules.keys())
assert not loaded, loaded
"""


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').glob('*.py')))
def test_help_answers_at_once(tool: str) -> None:
    """No tool imports a large library before it has parsed its arguments."""
    script = HELP.format(tool=str(ROOT / 'tools' / tool))
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('usage: ')
