import json
import statistics
from pathlib import Path

import pytest

from downstream.results import TASKS, transfer_table
from pretrain.errors import UserError
from pretrain.tables import find_records


def record(label: str, seed: int, value: float, task: str = 'detection', **extra: object) -> dict:
    metric = 'mAP' if task == 'detection' else 'mIoU'
    return {
        'status': 'finished',
        'task': task,
        'config': f'{task}_config',
        'label': label,
        'device': 'CPU, 2 cores',
        'identity': {'seed': seed},
        'paper': {'metric': metric, 'BL': 73.49, 'SD': 74.93},
        'data': {'train': {'count': 240}, 'val': {'count': 80}},
        'history': [{'epoch': 3}],
        'generations': [{'last': {metric: value}}],
    } | extra


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_table_against_plain_statistics() -> None:
    values = {'BL': [0.701, 0.723, 0.718], 'SD': [0.731, 0.742, 0.729]}
    records = [record(b, s, v) for b, vs in values.items() for s, v in enumerate(vs)]
    header, _, baseline, distilled = rows(transfer_table(records))
    assert header == [
        'task', 'metric', 'backbone', 'paper', 'ours', 'n', 'delta paper', 'delta ours',
    ]  # fmt: skip
    mean = {b: 100 * statistics.fmean(vs) for b, vs in values.items()}
    std = {b: 100 * statistics.stdev(vs) for b, vs in values.items()}
    assert baseline[3:] == ['73.49', f'{mean["BL"]:.2f} ± {std["BL"]:.2f}', '3', '', '']
    assert distilled[3:6] == ['74.93', f'{mean["SD"]:.2f} ± {std["SD"]:.2f}', '3']
    assert distilled[6:] == ['+1.44', f'{mean["SD"] - mean["BL"]:+.2f}']


def test_one_seed_has_no_spread_and_miou_is_in_percent() -> None:
    table = transfer_table([record('BL', 0, 77.5, 'segmentation')])
    assert rows(table)[2][4:6] == ['77.50', '1']


def test_missing_run_is_a_hole() -> None:
    records = [record('BL', 0, 0.7)]
    assert rows(transfer_table(records, ['BL', 'SD']))[3][3:] == [
        '74.93', 'missing', '0', '+1.44', '–',
    ]  # fmt: skip


def test_demo_configs_have_no_paper_number() -> None:
    table = transfer_table([record('BL', 0, 0.7, paper={'metric': 'mAP'})])
    assert rows(table)[2][3] == '–'
    assert '240 training and 80 test pictures, 3 epochs, on CPU, 2 cores' in table


def test_two_records_of_one_run_are_an_error() -> None:
    with pytest.raises(UserError, match='same seed'):
        transfer_table([record('BL', 0, 0.7), record('BL', 0, 0.8)])


def test_only_finished_downstream_records_count(tmp_path: Path) -> None:
    good = record('BL', 0, 0.7)
    others = [good | {'status': 'running'}, good | {'task': 'classification'}]
    for number, content in enumerate([good, *others]):
        (tmp_path / f'{number}').mkdir()
        (tmp_path / f'{number}/run.json').write_text(json.dumps(content))
    (tmp_path / '0/vis_data').mkdir()
    (tmp_path / '0/vis_data/scalars.json').write_text('{}\n{}\n')  # what mmengine logs
    assert find_records(tmp_path, TASKS) == [good]


def test_no_record_at_all() -> None:
    with pytest.raises(UserError, match=r'tools/transfer\.py'):
        transfer_table([])
