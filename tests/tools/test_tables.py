"""The commands that read records: what they print, and what a mistake prints."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[str, str | int | None]]:
    """``call('tools/table.py', ...)``: what the command prints and what it exits with, here in
    this process."""

    def run(tool: str, *arguments: object) -> tuple[str, str | int | None]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        code = None
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert 'Traceback' not in printed.err
        return printed.out, code

    return run


def test_every_table_has_its_command(call: Callable) -> None:
    printed, code = call('tools/table.py', '5', 'configs/small/results/bccd.jsonl')
    assert code is None
    assert ' mAP | BL ' in printed


def test_the_baseline_of_table_5_can_be_chosen(call: Callable) -> None:
    records = 'configs/small/results/bccd.jsonl'
    printed, _ = call('tools/table.py', '5', records, '--labels', 'SD')
    labels = [line.split('|')[2].strip() for line in printed.splitlines() if ' mAP ' in line]
    assert labels == ['SD', 'BL', 'SE', 'random']
    assert 'gain over SD' in printed
    for table, option, value in (('5', '--backbones', 'resnet20'), ('3', '--labels', 'SD')):
        assert call('tools/table.py', table, records, option, value) == ('', 2)


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (['tools/table.py', '3', 'nowhere'], 'No folder or file nowhere'),
        (['tools/table.py', '2', 'tests'], 'no record of Table 2'),
        (['tools/table.py', '5', 'tests'], 'no finished downstream run'),
        (
            ['tools/table.py', '5', 'configs/small/results/bccd.jsonl', '--labels', 'KD'],
            'No finished run has the label KD: the labels are BL, SD, SE, random',
        ),
        (
            ['tools/plot_curves.py', 'BL=nowhere/run.json', 'x.png'],
            'No folder or file nowhere/run.json',
        ),
        (['tools/plot_curves.py', 'A=tests', 'A=tools', 'x.png'], 'A name is given twice'),
        (['tools/plot_curves.py', 'A=tests', 'x.jpeg2'], 'x.jpeg2 cannot be written as an image'),
        (['tools/sweep.py', 'configs/nowhere.py'], 'No config configs/nowhere.py'),
        (
            ['tools/similarity.py', '--cfg-options', 'data_root=nowhere'],
            'No file nowhere/.*cifar-100-python.tar.gz',
        ),
    ],
)
def test_mistakes_are_one_sentence(call: Callable, command: list[str], message: str) -> None:
    _, error = call(*command)
    assert re.match(f'error: .*{message}', error)
    assert '\n' not in error


def test_curves_of_a_record(call: Callable, tmp_path: Path) -> None:
    """Of a record alone, and of one chosen by config and seed from a file of several."""
    history = [
        {
            'epoch': e,
            'generation': 1,
            'train': {'error': 9.0 - e},
            'metrics': {'top1_error': 9.5 - e},
        }
        for e in (1, 2, 3)
    ]
    record = {'status': 'finished', 'task': 'classification', 'config': 'a', 'history': history}
    records = [record | {'identity': {'seed': seed}} for seed in (0, 1)]
    (tmp_path / 'run.json').write_text(json.dumps(record))
    (tmp_path / 'set.jsonl').write_text('\n'.join(map(json.dumps, records)))
    runs = f'BL={tmp_path}/run.json', f'SD={tmp_path}/set.jsonl:a:1'
    _, code = call('tools/plot_curves.py', *runs, f'{tmp_path}/out.svg')
    assert code is None
    assert (tmp_path / 'out.svg').stat().st_size > 1000
    _, error = call('tools/plot_curves.py', f'SD={tmp_path}/set.jsonl:a', f'{tmp_path}/out.svg')
    assert error.endswith('set.jsonl:a names 2 records: name one as FILE:CONFIG:SEED.')
    _, error = call('tools/plot_curves.py', f'SD={tmp_path}/set.jsonl:a:1:b', f'{tmp_path}/out.svg')
    assert error.endswith('set.jsonl:a:1:b names 0 records: name one as FILE:CONFIG:SEED.')


def test_records_are_collected_and_read_again(call: Callable, tmp_path: Path) -> None:
    """The README's two commands for a new set of records."""
    source = ROOT / 'configs/pretrain/cifar100/results/methods_short.jsonl'
    for number, line in enumerate(reversed(source.read_text().splitlines())):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'run.json').write_text(line)
    out = tmp_path / 'set.jsonl'
    printed, _ = call('tools/collect_records.py', tmp_path, out)
    assert printed == f'12 records are in {out}.\n'
    tables = {call('tools/table.py', '1', records) for records in (tmp_path, out, source)}
    assert len(tables) == 1
