"""The README says what is so."""

import re

from downstream.results import TASKS, transfer_table
from pretrain.tables import find_records
from tests.conftest import ROOT

README = (ROOT / 'README.md').read_text()


def test_table_is_made_from_the_committed_records() -> None:
    records = find_records(ROOT / 'configs/demo/results/smoke', TASKS)
    assert f'<!-- smoke table -->\n{transfer_table(records)}<!-- end -->' in README


def test_links_and_commands_exist() -> None:
    for path in re.findall(r'\]\(((?!http)[^)]+)\)', README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r'(?:configs|tools)/[\w/]+\.(?:py|sh)', README):
        assert (ROOT / path).exists(), path
