"""What may import what, and what an import may do: register our own classes, and nothing else."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable

import pytest

from tests.conftest import ROOT

# mmengine asks CUDA for its GPUs when it is imported.
SEEN_BY_CUDA = """
import os
import runpy

import torch

seen = set()
torch.cuda.is_available = lambda: seen.add(os.environ.get('CUDA_VISIBLE_DEVICES')) or False
runpy.run_path('tests/conftest.py')
print(sorted(map(str, seen)))
"""

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
    'folder', ['pretrain/runs', 'pretrain/studies', 'downstream', 'downstream/studies']
)
def test_a_package_says_what_its_modules_are_for(folder: str) -> None:
    listed = ast.get_docstring(ast.parse((ROOT / folder / '__init__.py').read_text()))
    modules = {path.stem for path in (ROOT / folder).glob('*.py')} - {'__init__'}
    assert modules <= {*re.findall(r'``(\w+)``', listed)}


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
        for module in imported(ast.walk(ast.parse(path.read_text())))
        if module.split('.')[0] in ('pretrain', 'downstream', 'tools', 'tests')
        and not any(f'{module}.'.startswith(f'{room}.') for room in allowed)
    ]
    assert upward == []


def imported(nodes: Iterable[ast.AST]) -> list[str]:
    """The modules that nodes of a file import."""
    modules = []
    for node in nodes:
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'a relative import'
            # What is imported from a package may be a module of it.
            modules += [f'{node.module}.{alias.name}' for alias in node.names]
    return modules


# Packages whose modules have another name.
PACKAGES = {'PIL': 'pillow', 'cv2': 'opencv-python', 'mmcv': 'mmcv-lite', 'yaml': 'pyyaml'}


def test_what_is_imported_is_declared_and_pinned() -> None:
    """Whatever a module needs when it is imported is a dependency; what a function imports may be
    an extra."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']

    def names(lines: Iterable[str]) -> set[str]:
        return {re.match(r'[\w-]*', line)[0] for line in lines}

    needed = names(project['dependencies'])
    extra = names(line for lines in project['optional-dependencies'].values() for line in lines)
    assert needed <= names((ROOT / 'requirements.txt').read_text().splitlines())
    undeclared = set()
    for path in (
        p for room in ('pretrain', 'downstream', 'tools') for p in ROOT.glob(f'{room}/**/*.py')
    ):
        tree = ast.parse(path.read_text())
        for nodes, declared in ((tree.body, needed), (ast.walk(tree), needed | extra)):
            packages = {module.split('.')[0] for module in imported(nodes)}
            packages -= {*sys.stdlib_module_names, 'pretrain', 'downstream', 'tools'}
            undeclared |= {(path.name, p) for p in packages if PACKAGES.get(p, p) not in declared}
    assert undeclared == set()


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


@pytest.mark.parametrize(('given', 'seen'), [(None, ''), ('0', '0')])
def test_tests_hide_all_gpus_from_cuda_unless_some_are_made_visible(
    given: str | None, seen: str
) -> None:
    environment = {name: v for name, v in os.environ.items() if name != 'CUDA_VISIBLE_DEVICES'}
    if given is not None:
        environment['CUDA_VISIBLE_DEVICES'] = given
    command = [sys.executable, '-c', SEEN_BY_CUDA]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f'{[seen]}\n', done.stderr
