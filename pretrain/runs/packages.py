"""The packages that the suite needs, and which of them are not installed."""

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

# What an OpenMMLab environment may have in a package's place.
ALTERNATIVES = {
    'mmcv-lite': ('mmcv',),
    'opencv-python': ('opencv-python-headless', 'opencv-contrib-python'),
}


def needed_packages() -> list[str]:
    """The names of the packages that the installed suite asks for, extras left out."""
    try:
        wanted = requires('snapshot-distillation')
    except PackageNotFoundError:  # run from the repository, with packages of the user's own
        wanted = []
    return [re.match(r'[\w.-]+', want)[0] for want in wanted if 'extra ==' not in want]


def version_of(package: str) -> str | None:
    """The version of an installed package, or of what may stand in its place; None without one."""
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
