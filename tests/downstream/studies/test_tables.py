import functools
import json
import math
import re
import statistics
from pathlib import Path

import pytest

from downstream.studies.tables import CONFIGS, TASKS, transfer_table
from pretrain.runs.config import load_config
from pretrain.runs.errors import Contents, UserError
from pretrain.runs.tables import SHORTENED, find_records


@functools.cache
def recipe(task: str) -> dict:
    """The settings of the paper's config in a record, as far as tables compare them."""
    settings = load_config(f'configs/downstream/{CONFIGS[task]}.py').to_dict()
    keys = ('batch_size', 'optim_wrapper', 'param_scheduler', 'image_scale', 'scale_range')
    keys += ('crop_size',)
    return json.loads(json.dumps({key: settings[key] for key in keys} | {'model': {}}))


def record(
    label: str,
    seed: int,
    value: float,
    task: str = 'detection',
    pretrained: int = 0,
    **extra: object,
) -> dict:
    metric = 'mAP' if task == 'detection' else 'mIoU'
    train, val, epochs = (5_011, 4_952, 10) if task == 'detection' else (10_582, 1_449, 50)
    return {
        'format': 2,
        'status': 'finished',
        'task': task,
        'config': f'{task}_config',
        'label': label,
        'device': 'CPU, 2 cores',
        'world_size': 1,
        'accepted_changes': [],
        'identity': {
            'randomness': {'seed': seed},
            'precision': 'float32',
            'backbone': backbone(label, pretrained),
            **recipe(task),
        },
        'paper': {'metric': metric, 'BL': 73.49, 'SD': 74.93},
        'data': {'train': {'count': train}, 'val': {'count': val}},
        'history': [{'epoch': epochs}],
        'generations': [{'last': {metric: value}}],
    } | extra


def backbone(label: str, seed: int = 0, **extra: object) -> dict:
    return {'weights_sha256': f'{label}{seed}', 'seed': seed, 'depth': 152} | extra


def rows(table: object) -> list[list[str]]:
    lines = [line for line in str(table).splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def named(table: str) -> list[dict[str, str]]:
    """For each row, its cells by column name."""
    header, _, *body = rows(table)
    return [dict(zip(header, row, strict=True)) for row in body]


def test_table_against_plain_statistics() -> None:
    values = {'BL': [0.701, 0.723, 0.718], 'SD': [0.731, 0.742, 0.729]}
    records = [record(b, s, v) for b, vs in values.items() for s, v in enumerate(vs)]
    table = str(transfer_table(records))
    baseline, distilled = named(table)
    assert list(baseline) == [
        'task', 'backbone', 'paper', 'mean', 'within', 'n',
        "paper's gain", 'gain over BL [95 %]', 'p',
    ]  # fmt: skip
    for label, paper, row in (('BL', '73.49', baseline), ('SD', '74.93', distilled)):
        assert row['task'] == 'detection mAP'
        assert (row['backbone'], row['paper']) == (label, paper)
        assert row['mean'] == f'{100 * statistics.fmean(values[label]):.2f}'
        assert row['within'] == f'{100 * statistics.stdev(values[label]):.2f}'
        assert row['n'] == '1 × 3'
    assert list(baseline.values())[6:] == ['', '', '']
    # Differences 3.0, 1.9, 1.1: mean 2.0, variance (1.0² + 0.1² + 0.9²) / 2 = 0.91, so that
    # t = 2 / sqrt(0.91 / 3); with 2 degrees of freedom p = 1 - t / sqrt(t² + 2), and the interval
    # reaches to 0.95 * sqrt(2 / (1 - 0.95²)) standard errors.
    error = math.sqrt(0.91 / 3)
    p = f'{1 - 2 / error / math.sqrt((2 / error) ** 2 + 2):.3f}'
    margin = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * error
    gain = f'+2.00 [{2 - margin:+.2f}, {2 + margin:+.2f}]'
    assert list(distilled.values())[6:] == ['+1.44', gain, p]
    assert f'{gain} over 3 fine-tuning seeds, p = {p}: not distinguishable' in table


def test_replicates_of_both_kinds() -> None:
    """Two pretrainings of each label, fine-tuned twice: means 70, 72 and 71, 75."""
    values = {'BL': [(69.5, 70.5), (71.0, 73.0)], 'SD': [(70.0, 72.0), (74.5, 75.5)]}
    records = [
        record(label, seed, value / 100, pretrained=pretrained)
        for label, replicates in values.items()
        for pretrained, runs in enumerate(replicates)
        for seed, value in enumerate(runs)
    ]
    table = str(transfer_table(records))
    baseline, distilled = named(table)
    # Within: variances 0.5 and 2.0, mean 1.25. Between: variance of the means minus 1.25 / 2.
    assert (baseline['mean'], baseline['n']) == ('71.00', '2 × 2')
    assert baseline['within'] == distilled['within'] == f'{math.sqrt(1.25):.2f}'
    assert baseline['between'] == f'{math.sqrt(2.0 - 0.625):.2f}'
    assert distilled['between'] == f'{math.sqrt(8.0 - 0.625):.2f}'
    # Differences 1 and 3: t = 2 / 1 with 1 degree of freedom.
    p = f'{1 - 2 * math.atan(2) / math.pi:.3f}'
    margin = math.tan(0.95 * math.pi / 2)
    gain = f'+2.00 [{2 - margin:+.2f}, {2 + margin:+.2f}]'
    assert (distilled['gain over BL [95 %]'], distilled['p']) == (gain, p)
    assert f'{gain} over 2 pretraining seeds × 2 fine-tuning seeds, p = {p}: not disting' in table
    records[-1]['identity']['backbone']['epoch'] = 50
    with pytest.raises(UserError, match='replicates of SD differ in epoch'):
        transfer_table(records)


def test_one_fine_tuning_each_leaves_both_spreads_in_one() -> None:
    records = [record('BL', 0, v, pretrained=s) for s, v in enumerate((0.70, 0.72))]
    table = str(transfer_table(records))
    (row,) = named(table)
    assert '†: each pretraining was fine-tuned once' in table
    assert (row['between'], row['n'], 'within' in row) == ('1.41 †', '2 × 1', False)


def test_errors_of_pretraining_stand_beside() -> None:
    records = [record('BL', s, 0.7, pretrained=p) for s in (0, 1) for p in (0, 1)]
    assert 'top-1 error' not in str(transfer_table(records))
    for r in records:
        own = r['identity']['backbone']
        own['top1_error'] = 30.0 + own['seed']
    table = str(transfer_table([*records, record('random', 0, 0.1)]))
    assert [row['top-1 error'] for row in named(table)] == ['30.50 ± 0.71', '']
    assert [*named(table)[0]][-1] == 'top-1 error'  # the results come first
    assert 'The top-1 error is that of pretraining.' in table


def test_the_scale_of_features_stands_beside() -> None:
    records = [
        record('BL', 0, 0.7, pretrained=p, features={'rms': 0.04 + p / 1000}) for p in (0, 1)
    ]
    scaled = record('SD scaled', 0, 0.7, features={'rms': 1234.5})
    scaled['identity']['backbone']['feature_scale'] = 3.5
    table = str(transfer_table([*records, scaled, record('SD', 0, 0.7)]))
    cells = {row['backbone']: row['feature RMS'] for row in named(table)}
    assert cells == {'BL': '0.0405 ± 0.00071', 'SD': '', 'SD scaled': '1.23e+03'}
    assert 'Feature RMS: the root mean square of the last feature maps' in table
    assert '- SD scaled: last feature maps × 3.5.\n' in table
    assert table.count('last feature maps ×') == 1


def sentence(baseline: dict[int, float], ours: dict[int, float]) -> str:
    """The verdict of the table on these values (points by seed), from after 'detection, SD against
    BL: ' to the semicolon. Without a test, the gain in the row comes first."""
    cells = {'BL': baseline, 'SD': ours}
    records = [record(b, s, v / 100) for b, values in cells.items() for s, v in values.items()]
    table = str(transfer_table(records, ['BL', 'SD']))
    (line,) = (line for line in table.splitlines() if ' against ' in line)
    start, _, words = line.partition(': ')
    assert start == '- detection, SD against BL'
    row = named(table)[1]
    if 'p' in row:
        assert words.startswith(row['gain over BL [95 %]'])
    elif 'gain over BL' in row:
        words = f'{row["gain over BL"]} {words}'
    return words.partition(';')[0]


@pytest.mark.parametrize('sign', [1, -1])
def test_a_difference_is_better_or_worse_or_neither(sign: int) -> None:
    baseline = {0: 70.0, 1: 74.0, 2: 66.0}
    # Both values of a pair share the baseline's spread of 4 points; they are 1.8 to 2.2 apart.
    ours = {seed: value + sign * (1.8 + 0.2 * seed) for seed, value in baseline.items()}
    t = 2 / math.sqrt(0.04 / 3)
    p = 1 - t / math.sqrt(t**2 + 2)
    margin = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * math.sqrt(0.04 / 3)
    interval = f'[{2 * sign - margin:+.2f}, {2 * sign + margin:+.2f}]'
    word = 'better' if sign > 0 else 'worse'
    assert sentence(baseline, ours) == (
        f'{2 * sign:+.2f} {interval} over 3 fine-tuning seeds, p = {p:.3f}: {word} at the 5 % level'
    )
    ours[1] = baseline[1] - sign * 4.0
    assert sentence(baseline, ours).endswith('not distinguishable')


def test_p_of_two_pairs_and_of_many() -> None:
    # Differences 1 and 2: t = 1.5 / 0.5 = 3; with 1 degree of freedom p = 1 - 2 atan(t) / pi, and
    # the interval reaches to tan(0.95 pi / 2) standard errors.
    p = 1 - 2 * math.atan(3) / math.pi
    margin = 0.5 * math.tan(0.95 * math.pi / 2)
    two = sentence({0: 70.0, 1: 70.0}, {0: 71.0, 1: 72.0})
    assert two == (
        f'+1.50 [{1.5 - margin:+.2f}, {1.5 + margin:+.2f}] over 2 fine-tuning seeds, p = {p:.3f}: '
        'not distinguishable'
    )
    many = sentence(dict.fromkeys(range(20), 70.0), {s: 71.0 + 0.02 * (s % 2) for s in range(20)})
    assert re.fullmatch(
        r'\+1\.01 \[.*\] over 20 fine-tuning seeds, p <0\.001: better at the 5 % level', many
    )


def test_only_shared_seeds_are_paired() -> None:
    words = sentence({0: 70.0, 1: 71.0, 2: 90.0}, {1: 72.0, 0: 73.0, 5: 10.0, 6: 11.0})
    assert words == (
        '+2.00 [-10.71, +14.71] over 2 fine-tuning seeds that both have, 3 other runs left out, '
        'p = 0.295: not distinguishable'
    )
    words = sentence({0: 70.0, 1: 71.0}, {1: 72.5})
    assert words == (
        '+1.50 over 1 fine-tuning seed that both have, 1 other run left out, so no test is possible'
    )


def test_where_no_test_is_possible() -> None:
    assert sentence({0: 70.0}, {0: 69.5}) == '-0.50 over 1 fine-tuning seed, so no test is possible'
    # 0.1 twice, up to rounding in binary.
    same = sentence({0: 70.1, 1: 71.3}, {0: 70.2, 1: 71.4})
    assert same == '+0.10 over 2 fine-tuning seeds, with equal differences, so no test is possible'
    assert sentence({0: 70.0}, {}) == 'no seed in common: no comparison is possible.'
    assert sentence({0: 70.0}, {1: 70.0}) == 'no seed in common: no comparison is possible.'


def test_what_seeds_do_not_vary_is_said_where_backbones_are_compared() -> None:
    said = 'the comparison is between these backbones, not between the methods'
    assert said in str(transfer_table([record('BL', 0, 0.7), record('SD', 0, 0.7)]))
    assert said not in str(transfer_table([record('BL', 0, 0.7), record('BL', 1, 0.7)]))


def test_one_seed_has_no_spread_and_miou_is_in_percent() -> None:
    table = str(transfer_table([record('BL', 0, 77.5, 'segmentation')]))
    (row,) = named(table)
    assert row['mean'] == '77.50'
    assert row['n'] == '1 × 1'
    assert not {'between', 'within', 'p'} & row.keys()
    assert 'analysis of variance' not in table


def test_what_holds_for_all_comparisons_is_said_once() -> None:
    labels = 'BL', 'SE', 'SD'
    table = str(transfer_table([record(label, 0, 0.7) for label in labels], labels))
    said = '- all comparisons: over 1 fine-tuning seed, so no test is possible; the comparison is'
    assert said in table
    assert ' against ' not in table


def test_missing_run_is_a_hole() -> None:
    records = [record('BL', 0, 0.7)]
    assert rows(transfer_table(records, ['BL', 'SD']))[3][2:] == [
        '74.93', 'missing', '0', '+1.44',
    ]  # fmt: skip


SHORT = {'data': {'train': {'count': 240}, 'val': {'count': 80}}, 'history': [{'epoch': 3}]}


@pytest.mark.parametrize(
    ('epochs', 'said'), [(1, '1 epoch, in float32 on'), (3, '3 epochs, in float32 on')]
)
def test_demo_configs_have_no_paper_number(epochs: int, said: str) -> None:
    short = SHORT | {'history': [{'epoch': epochs}]}
    table = str(transfer_table([record('BL', 0, 0.7, paper={'metric': 'mAP'}, **short)]))
    assert 'paper' not in table
    assert f'- detection_config: ResNet-152, 240 training and 80 test images, {said} CPU' in table


def test_shortened_runs_do_not_stand_beside_the_papers() -> None:
    table = str(transfer_table([record(label, 0, 0.7, **SHORT) for label in ('BL', 'SD')]))
    assert not {'paper', "paper's gain"} & named(table)[1].keys()
    assert f'- {SHORTENED}detection_config: ResNet-152, 240 training' in table


def test_changed_runs_do_not_stand_beside_the_papers() -> None:
    change = {'epoch': 3, 'key': 'data.train', 'was': 'a' * 64, 'now': 'b' * 64}
    for more, said in (
        (settings(batch_size=4, image_scale=(300, 200)), 'batch_size=4 instead of 16, image_scale'),
        (settings(param_scheduler=[]), 'param_scheduler'),
        ({'accepted_changes': [change]}, 'during training'),
    ):
        table = str(transfer_table([record(label, 0, 0.7, **more) for label in ('BL',)]))
        assert 'paper' not in named(table)[0]
        assert f'- CHANGED ({said}' in table
    assert 'DURING TRAINING: data.train from aaaaaaaa to bbbbbbbb after epoch 3 (1 run).' in table


def settings(**more: object) -> dict:
    return {'identity': record('SD', 0, 0.7)['identity'] | more}


@pytest.mark.parametrize(
    ('other', 'names'),
    [
        (
            SHORT | {'history': [{'epoch': 10}]},
            r'files.train.count \(5011 and 240\), files.val.count \(4952 and 80\)',
        ),
        ({'history': [{'epoch': 9}]}, r'epochs \(10 and 9\)'),
        (settings(batch_size=4), r'batch_size \(16 and 4\)'),
        (settings(data={'train': ['x']}), r'data.train \(None and ..x..\)'),
        (settings(val_evaluator={'type': 'other'}), r'val_evaluator.type \(None and other\)'),
        (settings(model={'backbone': {'depth': 18}}), r'model.backbone.depth \(None and 18\)'),
        (settings(backbone=backbone('SD', depth=18)), r'depth \(152 and 18\)'),
    ],
)
def test_unlike_runs_are_not_compared(other: dict, names: str) -> None:
    with pytest.raises(UserError, match=f'detection_config differ in {names}, and do not'):
        transfer_table([record('BL', 0, 0.7), record('SD', 0, 0.7, **other)])
    pytorch, caffe = (
        settings(backbone=backbone(b, style=s), model={'backbone': {'depth': 152, 'style': s}})
        for b, s in (('BL', 'pytorch'), ('SD', 'caffe'))
    )
    assert transfer_table([record('BL', 0, 0.7, **pytorch), record('SD', 0, 0.7, **caffe)])


def test_the_papers_numbers_are_of_resnet_152() -> None:
    records = [
        record(
            b,
            0,
            0.7,
            **settings(backbone=backbone(b, depth=18)),
        )
        for b in ('BL', 'SD')
    ]
    table = str(transfer_table(records))
    assert 'paper' not in named(table)[0]
    assert f'- {SHORTENED}detection_config: ResNet-18, 5011' in table


def test_two_configs_of_one_task_are_told_apart() -> None:
    table = str(
        transfer_table(
            [
                record(label, 0, value, config=config)
                for config, value in (('c4', 0.70), ('fpn', 0.75))
                for label in ('BL', 'SD')
            ]
            + [record('BL', 0, 70.0, 'segmentation')]
        )
    )
    names = [row['task'].split()[0] for row in named(table)]
    assert names == ['c4', 'c4', 'fpn', 'fpn', 'segmentation', 'segmentation']
    assert 'c4, SD against BL; fpn, SD against BL: over 1 fine-tuning seed, so no test' in table
    assert 'segmentation, SD against BL: no seed in common' in table


def test_two_records_of_one_run_are_an_error() -> None:
    twice = [Contents(record('BL', 0, 0.7), f'{name}/run.json') for name in 'ab']
    with pytest.raises(
        UserError,
        match=r'BL, detection_config have the same seed, 0: keep only one of a/run\.json and b/run',
    ):
        transfer_table([record('BL', 1, 0.7), *twice])


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


def test_a_whole_segmentation_run_stands_beside_the_paper() -> None:
    table = str(transfer_table([record('BL', 0, 77.5, 'segmentation')]))
    assert named(table)[0]['paper'] == '73.49'
    assert 'SHORTENED' not in table
