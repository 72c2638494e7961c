"""The README says what is so."""

import re
import subprocess
import sys

from tests.conftest import ROOT

README = (ROOT / 'README.md').read_text()


def test_tables_are_those_of_the_committed_records() -> None:
    shown = re.findall(r'<!-- (tools/\w+\.py [^>]*) -->\n(.*?)<!-- end -->', README, re.DOTALL)
    assert len(shown) == README.count('<!-- end -->') == 5
    for command, table in shown:
        printed = subprocess.run(
            [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert table == printed.stdout.rstrip('\n') + '\n', command


def test_links_and_commands_exist() -> None:
    for path in re.findall(r'\]\(((?!http)[^)]+)\)', README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r'(?:configs|tools)/[\w/]+\.(?:py|sh)', README):
        assert (ROOT / path).exists(), path
