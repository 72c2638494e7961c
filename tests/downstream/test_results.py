import json
import math
import statistics
from pathlib import Path

import pytest

from downstream.results import TASKS, transfer_table
from pretrain.runs.errors import UserError
from pretrain.runs.report import find_records


def record(label: str, seed: int, value: float, task: str = 'detection', **extra: object) -> dict:
    metric = 'mAP' if task == 'detection' else 'mIoU'
    train, val, epochs = (5_011, 4_952, 10) if task == 'detection' else (10_582, 1_449, 50)
    return {
        'status': 'finished',
        'task': task,
        'config': f'{task}_config',
        'label': label,
        'device': 'CPU, 2 cores',
        'identity': {'seed': seed},
        'paper': {'metric': metric, 'BL': 73.49, 'SD': 74.93},
        'data': {'train': {'count': train}, 'val': {'count': val}},
        'history': [{'epoch': epochs}],
        'generations': [{'last': {metric: value}}],
    } | extra


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_table_against_plain_statistics() -> None:
    values = {'BL': [0.701, 0.723, 0.718], 'SD': [0.731, 0.742, 0.729]}
    records = [record(b, s, v) for b, vs in values.items() for s, v in enumerate(vs)]
    table = transfer_table(records)
    header, _, baseline, distilled = rows(table)
    assert header == [
        'task', 'metric', 'backbone', 'paper', 'ours', 'n', 'delta paper', 'delta ours', 'p',
    ]  # fmt: skip
    mean = {b: 100 * statistics.fmean(vs) for b, vs in values.items()}
    std = {b: 100 * statistics.stdev(vs) for b, vs in values.items()}
    assert baseline[3:] == ['73.49', f'{mean["BL"]:.2f} ± {std["BL"]:.2f}', '3', '', '', '']
    assert distilled[3:7] == ['74.93', f'{mean["SD"]:.2f} ± {std["SD"]:.2f}', '3', '+1.44']
    # Differences 3.0, 1.9, 1.1: mean 2.0, variance (1.0² + 0.1² + 0.9²) / 2 = 0.91, so that
    # t = 2 / sqrt(0.91 / 3); with 2 degrees of freedom p = 1 - t / sqrt(t² + 2).
    t = 2 / math.sqrt(0.91 / 3)
    p = f'{1 - t / math.sqrt(t**2 + 2):.3f}'
    assert distilled[7:] == [f'+2.00 ± {math.sqrt(0.91):.2f}', p]
    assert f'+2.00 ± 0.95 over 3 seeds (p = {p}): not distinguishable.' in table


def sentence(baseline: dict[int, float], ours: dict[int, float]) -> str:
    """What the table says of these values, seed to points, after 'detection, SD against BL: '."""
    cells = {'BL': baseline, 'SD': ours}
    records = [record(b, s, v / 100) for b, values in cells.items() for s, v in values.items()]
    table = transfer_table(records, ['BL', 'SD'])
    (line,) = (line for line in table.splitlines() if ' against ' in line)
    start, _, words = line.partition(': ')
    assert start == '- detection, SD against BL'
    assert words.startswith(rows(table)[3][7].replace('–', 'no seed'))
    return words


@pytest.mark.parametrize('sign', [1, -1])
def test_a_difference_is_better_or_worse_or_neither(sign: int) -> None:
    baseline = {0: 70.0, 1: 74.0, 2: 66.0}
    # The baseline's spread of 4 points is shared by each pair: 1.8, 2.0 and 2.2 apart.
    ours = {seed: value + sign * (1.8 + 0.2 * seed) for seed, value in baseline.items()}
    t = 2 / math.sqrt(0.04 / 3)
    p = 1 - t / math.sqrt(t**2 + 2)
    word = 'better' if sign > 0 else 'worse'
    assert sentence(baseline, ours) == (
        f'{2 * sign:+.2f} ± 0.20 over 3 seeds (p = {p:.3f}): {word} at the 5 % level.'
    )
    ours[1] = baseline[1] - sign * 4.0
    assert sentence(baseline, ours).endswith('not distinguishable.')


def test_p_of_two_pairs_and_of_many() -> None:
    # Differences 1 and 2: t = 1.5 / 0.5 = 3; with 1 degree of freedom p = 1 - 2 atan(t) / pi.
    p = 1 - 2 * math.atan(3) / math.pi
    two = sentence({0: 70.0, 1: 70.0}, {0: 71.0, 1: 72.0})
    assert two == f'+1.50 ± 0.71 over 2 seeds (p = {p:.3f}): not distinguishable.'
    many = sentence(dict.fromkeys(range(20), 70.0), {s: 71.0 + 0.02 * (s % 2) for s in range(20)})
    assert many == '+1.01 ± 0.01 over 20 seeds (p <0.001): better at the 5 % level.'


def test_only_shared_seeds_are_paired() -> None:
    words = sentence({0: 70.0, 1: 71.0, 2: 90.0}, {1: 72.0, 0: 73.0, 5: 10.0, 6: 11.0})
    assert words.startswith('+2.00 ± 1.41 over 2 seeds that both have, 3 other runs left out (p')
    words = sentence({0: 70.0, 1: 71.0}, {1: 72.5})
    assert words == (
        '+1.50 over one seed that both have, 1 other run left out: no test is possible.'
    )


def test_where_no_test_is_possible() -> None:
    assert sentence({0: 70.0}, {0: 69.5}) == '-0.50 over one seed: no test is possible.'
    # 0.1 twice, as far as binary fractions can say so.
    same = sentence({0: 70.1, 1: 71.3}, {0: 70.2, 1: 71.4})
    assert same == '+0.10 ± 0.00 over 2 seeds, the same with each: no test is possible.'
    assert sentence({0: 70.0}, {}) == 'no seed in common: no comparison is possible.'
    assert sentence({0: 70.0}, {1: 70.0}) == 'no seed in common: no comparison is possible.'


def test_what_seeds_do_not_vary_is_said_where_backbones_are_compared() -> None:
    said = 'a backbone is pretrained once'
    assert said in transfer_table([record('BL', 0, 0.7), record('SD', 0, 0.7)])
    assert said not in transfer_table([record('BL', 0, 0.7), record('BL', 1, 0.7)])


def test_one_seed_has_no_spread_and_miou_is_in_percent() -> None:
    table = transfer_table([record('BL', 0, 77.5, 'segmentation')])
    assert rows(table)[2][4:6] == ['77.50', '1']


def test_missing_run_is_a_hole() -> None:
    records = [record('BL', 0, 0.7)]
    assert rows(transfer_table(records, ['BL', 'SD']))[3][3:] == [
        '74.93', 'missing', '0', '+1.44', '–', '–',
    ]  # fmt: skip


SHORT = {'data': {'train': {'count': 240}, 'val': {'count': 80}}, 'history': [{'epoch': 3}]}


def test_demo_configs_have_no_paper_number() -> None:
    table = transfer_table([record('BL', 0, 0.7, paper={'metric': 'mAP'}, **SHORT)])
    assert rows(table)[2][3] == '–'
    assert '- detection_config: 240 training and 80 test pictures, 3 epochs, on CPU' in table


def test_shortened_runs_do_not_stand_beside_the_papers() -> None:
    table = transfer_table([record(label, 0, 0.7, **SHORT) for label in ('BL', 'SD')])
    assert [row[3] for row in rows(table)[2:]] == ['–', '–']
    assert '- SHORTENED, not comparable with the paper. detection_config: 240 training' in table


@pytest.mark.parametrize(
    ('other', 'names'),
    [
        (SHORT | {'history': [{'epoch': 10}]}, 'data'),
        ({'history': [{'epoch': 9}]}, 'epochs'),
        ({'identity': {'seed': 0, 'batch_size': 4}}, 'batch_size'),
    ],
)
def test_unlike_runs_are_not_compared(other: dict, names: str) -> None:
    with pytest.raises(UserError, match=f'detection_config differ in {names}, and do not'):
        transfer_table([record('BL', 0, 0.7), record('SD', 0, 0.7, **other)])
    own = {'identity': {'seed': 0, 'backbone': {'style': 'caffe'}, 'model': {'style': 'caffe'}}}
    assert transfer_table([record('BL', 0, 0.7), record('SD', 0, 0.7, **own)])


def test_two_configs_of_one_task_are_told_apart() -> None:
    table = transfer_table(
        [
            record(label, 0, value, config=config)
            for config, value in (('c4', 0.70), ('fpn', 0.75))
            for label in ('BL', 'SD')
        ]
        + [record('BL', 0, 70.0, 'segmentation')]
    )
    names = [row[0] for row in rows(table)[2:]]
    assert names == ['c4', 'c4', 'fpn', 'fpn', 'segmentation', 'segmentation']
    assert 'fpn, SD against BL: +0.00 over one seed' in table


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
