"""Rewrite the tables of all READMEs, and all metafile.yml, from the committed records.

python tools/readme_tables.py

A table between the lines ``<!-- tools/table.py 5 RECORDS -->`` and ``<!-- end -->`` is what this
command prints in the repository.
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
    """The output of ``python command`` in the repository; it runs in this process."""
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
    """``text`` with the tables that its commands print now."""
    return TABLE.sub(lambda table: f'{table[1]}{table[2]}{printed(table[1])}\n', text)


if __name__ == '__main__':
    tool_parser(__doc__).parse_args()
    from downstream.studies.metafiles import metafiles

    for path in READMES:
        path.write_text(with_tables(path.read_text()))
    for path, text in metafiles(ROOT).items():
        path.write_text(text)
