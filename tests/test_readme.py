"""The READMEs say what is so."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.readme_tables import READMES, with_tables

by_path = pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))


@by_path
def test_tables_are_those_of_the_committed_records(path: Path) -> None:
    text = path.read_text()
    assert with_tables(text) == text


def test_every_table_and_every_set_of_records_is_shown() -> None:
    text = ''.join(path.read_text() for path in READMES)
    assert len(re.findall('<!-- tools/', text)) == text.count('<!-- end -->') > 0
    for records in ROOT.glob('configs/**/results/*'):
        assert str(records.relative_to(ROOT)) in text, records


@by_path
def test_links_and_commands_exist(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r'\]\(((?!http)[^)#]+)', text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r'(?:configs|tools)/[\w/]+\.(?:py|sh)', text):
        assert (ROOT / name).exists(), name
