"""Write every generated table of every README anew, from the committed records.

python tools/readme_tables.py

A table stands between the lines ``<!-- tools/table.py 5 RECORDS -->`` and ``<!-- end -->``: what
the command prints, run in the repository.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READMES = sorted([ROOT / 'README.md', *ROOT.glob('configs/**/README.md'), *ROOT.glob('tools/*.md')])
TABLE = re.compile(r'(?<=<!-- )(tools/[^>]+)( -->\n).*?(?=<!-- end -->)', re.DOTALL)


def with_tables(text: str) -> str:
    """``text`` with what the commands in it print today."""

    def fresh(table: re.Match) -> str:
        command = [sys.executable, *shlex.split(table[1])]
        printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return f'{table[1]}{table[2]}{printed.stdout.strip()}\n'

    return TABLE.sub(fresh, text)


if __name__ == '__main__':
    for path in READMES:
        path.write_text(with_tables(path.read_text()))
