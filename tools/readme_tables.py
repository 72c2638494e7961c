"""Write every table of every README, and every metafile.yml, anew from the committed records.

python tools/readme_tables.py

A table stands between the lines ``<!-- tools/table.py 5 RECORDS -->`` and ``<!-- end -->``: what
the command prints, run in the repository.
"""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

from pretrain.runs.cli import tool_parser

ROOT = Path(__file__).resolve().parent.parent
READMES = [
    ROOT / 'README.md',
    *sorted(ROOT.glob('configs/**/README.md')),
    ROOT / 'tools/README.md',
]
TABLE = re.compile(r'(?<=<!-- )(tools/[^>]+)( -->\n).*?(?=<!-- end -->)', re.DOTALL)


@functools.cache
def printed(command: str) -> str:
    """What ``python command`` prints in the repository; here, in this process."""
    tool, *arguments = shlex.split(command)
    output = io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        patch.object(sys, 'argv', [tool, *arguments]),
    ):
        runpy.run_path(tool, run_name='__main__')
    return output.getvalue().strip()


def with_tables(text: str) -> str:
    """``text`` with what the commands in it print today."""
    return TABLE.sub(lambda table: f'{table[1]}{table[2]}{printed(table[1])}\n', text)


if __name__ == '__main__':
    tool_parser(__doc__).parse_args()
    from downstream.studies.metafiles import metafiles

    for path in READMES:
        path.write_text(with_tables(path.read_text()))
    for path, text in metafiles(ROOT).items():
        path.write_text(text)
