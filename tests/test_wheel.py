"""The suite without its repository: what a wheel holds, and that it runs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = 'pretrain', 'downstream', 'configs'
OPTIONS = 'model.network.num_classes=4', 'image_size=32', 'batch_size=8'


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    source = tmp_path_factory.mktemp('source')
    for name in CODE:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    build = 'from setuptools.build_meta import build_wheel; build_wheel(".")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob('*.whl')
    folder = tmp_path_factory.mktemp('installed')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_module_and_config_and_nothing_more(installed: Path) -> None:
    ours = {path.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob('*.py')}
    expected = {Path('pretrain', path) if path.parts[0] == 'configs' else path for path in ours}
    files = {path.relative_to(installed) for path in installed.rglob('*') if path.is_file()}
    code = {path for path in files if not path.parts[0].endswith('.dist-info')}
    assert {path for path in code if path.suffix == '.py'} == expected
    assert {path.name for path in code if path.suffix != '.py'} == {
        'pictograms.txt',
        'py.typed',
        'report_page.html',
    }


def test_run_starts_from_the_wheel(installed: Path, image_folder: Path, tmp_path: Path) -> None:
    """In an empty folder, by the name that a config has in the README. Another project's folder
    ``configs`` may lie beside the installed package."""
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    empty.mkdir()
    shutil.copytree(installed, site)
    for config in (installed / 'pretrain/configs').rglob('*.py'):
        other = site / config.relative_to(installed / 'pretrain')
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text('raise RuntimeError("the config of another project")')

    def python(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=empty,
            env=os.environ | {'PYTHONPATH': str(site)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = 'import downstream, pretrain; print(downstream.__file__, pretrain.__file__)'
    assert all(Path(path).is_relative_to(site) for path in python('-c', where).split())
    run = '-m', 'pretrain', 'configs/demo/r18_sd.py', '--check', '--cfg-options'
    python(*run, f'data_root={image_folder}', *OPTIONS)
    assert not list(empty.iterdir())
