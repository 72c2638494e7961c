"""The commands that read records: what they print, and what a mistake prints."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tools import collect_records, table


def call(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_table_has_its_command() -> None:
    table = call('tools/table.py', '5', 'configs/demo/results/bccd.jsonl')
    assert table.returncode == 0
    assert ', mAP (%) | BL ' in table.stdout


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (['tools/table.py', '3', 'nowhere'], 'No folder or file nowhere'),
        (['tools/table.py', '2', 'tests'], 'no record of Table 2'),
        (['tools/table.py', '5', 'tests'], 'no finished downstream run'),
        (
            ['tools/plot_curves.py', 'BL=nowhere/run.json', 'x.png'],
            'No folder or file nowhere/run.json',
        ),
        (['tools/sweep.py', 'configs/nowhere.py'], 'No config configs/nowhere.py'),
        (
            ['tools/similarity.py', '--cfg-options', 'data_root=nowhere'],
            'No file nowhere/.*cifar-100-python.tar.gz',
        ),
    ],
)
def test_mistakes_are_one_sentence(command: list[str], message: str) -> None:
    result = call(*command)
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert re.search(message, line)


def test_curves_of_a_record(tmp_path: Path) -> None:
    """Of a record alone, and of one chosen by config and seed from a file of several."""
    history = [
        {'epoch': e, 'train': {'error': 9.0 - e}, 'metrics': {'top1_error': 9.5 - e}}
        for e in (1, 2, 3)
    ]
    record = {'status': 'finished', 'task': 'classification', 'config': 'a', 'history': history}
    records = [record | {'identity': {'seed': seed}} for seed in (0, 1)]
    (tmp_path / 'run.json').write_text(json.dumps(record))
    (tmp_path / 'set.jsonl').write_text('\n'.join(map(json.dumps, records)))
    result = call(
        'tools/plot_curves.py', f'BL={tmp_path}/run.json', f'SD={tmp_path}/set.jsonl:a:1',
        f'{tmp_path}/out.svg',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'out.svg').stat().st_size > 1000
    result = call('tools/plot_curves.py', f'SD={tmp_path}/set.jsonl:a', f'{tmp_path}/out.svg')
    assert 'set.jsonl:a names 2 records: name one as FILE:CONFIG:SEED' in result.stderr


def test_records_are_collected_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The README's two commands for a new set of records, in this process."""
    source = ROOT / 'configs/pretrain/cifar100/results/methods_short.jsonl'
    for number, line in enumerate(reversed(source.read_text().splitlines())):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'run.json').write_text(line)

    def printed(tool: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [tool.__name__, *map(str, arguments)])
        tool.main()
        return capsys.readouterr().out

    out = tmp_path / 'set.jsonl'
    assert printed(collect_records, tmp_path, out) == f'14 records are in {out}.\n'
    tables = {printed(table, 'methods', records) for records in (tmp_path, out, source)}
    assert len(tables) == 1
