"""The packages that the suite needs, and which of them are not installed."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

# The packages that an OpenMMLab environment may have instead of a needed one.
OPENCV = 'python-headless', 'contrib-python', 'contrib-python-headless'
ALTERNATIVES = {
    'mmcv-lite': ('mmcv',),
    'opencv-python': tuple(f'opencv-{name}' for name in OPENCV),
}


NAME = 'snapshot-distillation'
PROJECT = Path(__file__).resolve().parents[2] / 'pyproject.toml'


def needed_packages() -> list[str]:
    """The names of the packages that the suite requires, without extras: from the repository's
    pyproject.toml, else from the installed suite; empty if neither exists."""
    project = tomllib.loads(PROJECT.read_text()).get('project', {}) if PROJECT.is_file() else {}
    try:
        wanted = project['dependencies'] if project.get('name') == NAME else requires(NAME)
    except PackageNotFoundError:
        wanted = []
    return [re.match(r'[\w.-]+', want)[0] for want in wanted if 'extra ==' not in want]


def version_of(package: str) -> str | None:
    """The version of an installed package, or of an alternative to it, with its name; else None."""
    for name in (package, *ALTERNATIVES.get(package, ())):
        try:
            found = distribution(name).version
        except PackageNotFoundError:
            continue
        return found if name == package else f'{found} ({name})'
    return None


def missing_packages() -> list[str]:
    """The needed packages that are not installed."""
    return [name for name in needed_packages() if version_of(name) is None]
