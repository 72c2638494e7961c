import functools
import json
import math
import shutil
import statistics
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_ind

from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.tables import SHORTENED, find_records
from pretrain.studies.tables import (
    errors_table,
    table_1,
    table_2,
    table_3,
    table_4,
    teachers_table,
    welch_p,
)
from tests.conftest import ROOT

CIFAR = ROOT / 'configs/pretrain/cifar100'
RECIPE = 'batch_size', 'optim_wrapper', 'image_size', 'train_dataloader'
load_once = functools.cache(load_config)
ROWS = [load_config(CIFAR / f'resnet20_{row}.py') for row in ('bl', 'se', 'sd_t2', 'sd_t3')]


def write(
    root: Path, config: str, seed: int, errors: list[float], epochs: int = 164, **more: object
) -> None:
    """A record whose generations end with ``errors``; each was 0.5 lower at its best."""
    (path,) = CIFAR.parent.rglob(f'{config}.py')
    settings = load_once(path)
    fresh = settings.algorithm.fresh_student
    lengths = [epochs if fresh else epochs // len(errors)] * len(errors)
    record = {
        'status': 'finished',
        'task': 'classification',
        'config': config,
        'format': 2,
        'label': config,
        'device': 'CPU',
        'world_size': 1,
        'accepted_changes': [],
        'identity': {
            'randomness': {'seed': seed},
            'precision': 'float32',
            **{key: settings[key] for key in RECIPE if key in settings},
            'model': {'network': settings.model.network},
            'algorithm': settings.algorithm | {'generations': lengths},
        }
        | more.pop('identity', {}),
        'data': {
            'train': {'count': 50_000, 'sha256': 'a'},
            'val': {'count': 10_000, 'sha256': 'b'},
        },
        'history': [
            {'epoch': e + 1, 'iterations': 391, 'seconds': 2.0} for e in range(sum(lengths))
        ],
        'generations': [
            {'last': {'top1_error': e}, 'best': {'top1_error': e - 0.5}} for e in errors
        ],
    }
    if len(errors) > 1:
        record['ensemble'] = {'top1_error': errors[-1] - 2.0}
    record |= more
    record['generations'] = [
        ({'last_epoch': end} if generation else {}) | generation
        for generation, end in zip(record['generations'], accumulate(lengths), strict=False)
    ]
    folder = root / config / f'seed{seed}'
    folder.mkdir(parents=True)
    (folder / 'run.json').write_text(json.dumps(record))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    for seed, shift in enumerate((0.0, 0.6, 2.1)):
        write(tmp_path, 'resnet20_bl', seed, [34.0 + shift])
        write(tmp_path, 'resnet20_se', seed, [37.0, 36.0, 35.0, 33.0 + shift])
        write(tmp_path, 'resnet20_sd_t3', seed, [37.0, 35.0, 33.0, 32.0 - shift])
    return tmp_path


def cells(table: object, *start: str) -> list[str]:
    """The cells after the first ones of the one row that begins with them."""
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in str(table).splitlines()]
    (row,) = (row for row in rows if row[: len(start)] == list(start))
    return row[len(start) :]


def test_table_3_against_the_formulas(records: Path) -> None:
    table = str(table_3(find_records(records), ROWS))
    ours = cells(table, 'ResNet-20', 'SD T=3', 'ours')
    values, base = [32.0, 31.4, 29.9], [34.0, 34.6, 36.1]
    assert ours[:3] == ['37.00 ± 0.00', '35.00 ± 0.00', '33.00 ± 0.00']
    assert ours[3] == f'31.10 ± {math.sqrt((0.9**2 + 0.3**2 + 1.2**2) / 2):.2f}'
    assert ours[4] == f'30.60 ± {statistics.stdev(values):.2f}'
    assert ours[5].startswith('29.10')
    assert ours[6] == '3'
    assert ours[7] == '+3.80'
    # Welch: t = 3.8 / sqrt(s1²/3 + s2²/3), equal variances here, so 4 degrees of freedom. Of
    # Student's t with 4 degrees, P(|t| > x) = 1 - u (3 - u²) / 2 with u = x / sqrt(x² + 4).
    t = 3.8 / math.sqrt((statistics.variance(values) + statistics.variance(base)) / 3)
    u = t / math.sqrt(t * t + 4)
    assert ours[8] == f'{1 - u * (3 - u * u) / 2:.3f}'
    assert cells(table, 'ResNet-20', 'SD T=3', 'paper')[:6] == [
        '36.17', '33.69', '32.24', '31.97', '31.76', '30.76',
    ]  # fmt: skip
    assert cells(table, 'ResNet-20', 'SD T=3', 'delta')[3] == '-0.87'
    baseline = cells(table, 'ResNet-20', 'BL', 'ours')
    assert baseline == ['–', '–', '–', '34.90 ± 1.08', '34.40 ± 1.08', '–', '3', '', '']


def test_missing_rows_and_deleted_records_are_holes(records: Path) -> None:
    table = str(table_3(find_records(records), ROWS))
    assert cells(table, 'ResNet-20', 'SD T=2', 'ours')[:7] == ['missing'] * 6 + ['0']
    shutil.rmtree(records / 'resnet20_sd_t3')
    assert cells(table_3(find_records(records), ROWS), 'ResNet-20', 'SD T=3', 'ours')[:7] == [
        *['missing'] * 6,
        '0',
    ]
    (records / 'resnet20_se/seed1/run.json').unlink()
    assert cells(table_3(find_records(records), ROWS), 'ResNet-20', 'SE', 'ours')[6] == '2'
    assert 'missing' in str(table_3([], ROWS))


def test_an_end_that_was_not_validated_is_missing(tmp_path: Path) -> None:
    """As with a val_interval of 164 epochs."""
    end = {'last': {'top1_error': 32.0}, 'best': {'top1_error': 31.5}}
    write(tmp_path, 'resnet20_sd_t3', 0, [0.0] * 4, generations=[{}, {}, {}, end])
    ours = cells(table_3(find_records(tmp_path), ROWS), 'ResNet-20', 'SD T=3', 'ours')
    assert ours[:5] == ['missing'] * 3 + ['32.00', '31.50']
    write(tmp_path, 'r152_sd', 0, [0.0] * 2, epochs=90, generations=[{}, end])
    table = table_4(
        [r for r in find_records(tmp_path) if r['config'] == 'r152_sd'],
        [load_config(CIFAR.parent / 'r152_sd.py')],
    )
    assert cells(table, 'ResNet-152', 'SD', 'ours')[:3] == ['missing', 'missing', '32.00']


def test_only_the_end_of_a_mini_generation_is_its_error(tmp_path: Path) -> None:
    """As with a val_interval of 40 epochs: epoch 40 is not the end of 41."""
    ends = [{'last': {'top1_error': 30.0 + k}, 'last_epoch': 40 * k} for k in (1, 2, 3)]
    ends += [{'last': {'top1_error': 34.0}, 'last_epoch': 164, 'best': {'top1_error': 33.0}}]
    write(tmp_path, 'resnet20_sd_t3', 0, [0.0] * 4, generations=ends)
    ours = cells(table_3(find_records(tmp_path), ROWS), 'ResNet-20', 'SD T=3', 'ours')
    assert ours[:4] == ['missing'] * 3 + ['34.00']


def test_runs_that_go_on_show_the_mini_generations_that_have_ended(tmp_path: Path) -> None:
    def going_on(config: str, seed: int, errors: list[float], epoch: int) -> None:
        write(
            tmp_path, config, seed, [0.0] * 4, status='running', history=[{'epoch': epoch}],
            generations=[{'last': {'top1_error': e}, 'best': {'top1_error': 0.0}} for e in errors],
        )  # fmt: skip

    write(tmp_path, 'resnet20_bl', 0, [34.0])
    write(tmp_path, 'resnet20_sd_t3', 0, [37.0, 35.0, 33.0, 32.0])
    going_on('resnet20_sd_t3', 1, [36.0, 34.0], 82)
    going_on('resnet20_se', 0, [36.5], 41)
    going_on('resnet20_sd_t2', 0, [], 40)
    for record in (records := find_records(tmp_path, running=True)):
        if record['status'] == 'running' and record['history'][-1]['epoch'] != 40:
            record['generations'].append({'last': {'top1_error': 50.0}, 'last_epoch': 83})
    table = table_3(records, ROWS)
    # The unfinished third mini-generation, at 50 %, counts nowhere; nor does a best of 0.
    assert cells(table, 'ResNet-20', 'SD T=3', 'ours') == [
        '36.50 ± 0.71', '34.50 ± 0.71', '33.00', '32.00', '31.50', '30.00', '2', '+2.00', '–',
    ]  # fmt: skip
    missing = ['missing'] * 5
    assert cells(table, 'ResNet-20', 'SE', 'ours') == ['36.50', *missing, '1', '', '']
    assert cells(table, 'ResNet-20', 'SD T=2', 'ours') == ['missing', *missing, '0', '', '']
    said = 'NOT FINISHED: ResNet-20, SE, seed 0 (1 of 4 mini-generations); ResNet-20, SD T=3, seed'
    assert f'{said} 1 (2 of 4 mini-generations). Such runs' in str(table)
    finished = table_3(find_records(tmp_path), ROWS)
    assert cells(finished, 'ResNet-20', 'SD T=3', 'ours')[6] == '1'
    assert 'NOT FINISHED' not in str(finished)


def test_shortened_runs_are_labelled_and_not_compared(tmp_path: Path) -> None:
    write(tmp_path, 'resnet20_bl', 0, [90.0], epochs=8)
    table = str(table_3(find_records(tmp_path), ROWS))
    assert f'{SHORTENED}ResNet-20: 8 epochs per run' in table
    assert 'delta' not in table.replace('gain', '')


FEWER = {'train': {'count': 2_000}, 'val': {'count': 10_000}}


def test_runs_with_another_recipe_are_not_compared(tmp_path: Path) -> None:
    changed = {'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 1.0}}, 'batch_size': 64}
    write(tmp_path, 'resnet20_bl', 0, [60.0], identity=changed)
    table = str(table_3(find_records(tmp_path), ROWS))
    assert 'CHANGED (batch_size=64 instead of 128, optim_wrapper.optimizer.lr=1.0 instead' in table
    assert 'not comparable with the paper. ResNet-20: 164 epochs' in table
    assert 'delta' not in table


@pytest.mark.parametrize(
    ('settings', 'change'),
    [
        ({'identity': {'micro_batches': 4}}, 'micro_batches=4 instead of 1'),
        (
            {
                'accepted_changes': [
                    {'epoch': 9, 'key': 'precision', 'was': 'bf16', 'now': 'float32'}
                ]
            },
            'during training',
        ),
    ],
)
def test_runs_of_which_any_was_changed_are_not_compared(
    settings: dict, change: str, records: Path
) -> None:
    """Not only the baseline, or the first of a row."""
    write(records, 'resnet20_se', 7, [40.0] * 4, **settings)
    mine = find_records(records)
    if 'identity' in settings:
        mine = [record for record in mine if record['config'] == 'resnet20_se'][-1:]
    table = str(table_3(mine, ROWS))
    assert f'CHANGED ({change}), not comparable with the paper. ResNet-20' in table
    assert 'delta' not in table
    told = 'CHANGED DURING TRAINING: precision from bf16 to float32 after epoch 9 (1 run).'
    assert (told in table) == (told in str(errors_table(mine))) == (change == 'during training')


@pytest.mark.parametrize('make', [errors_table, lambda records: table_3(records, ROWS)])
def test_runs_on_other_images_of_the_same_names_are_not_mixed(
    make: Callable, tmp_path: Path
) -> None:
    for seed, content in enumerate('ab'):
        write(
            tmp_path, 'resnet20_bl', seed, [33.0],
            identity={'data': {'train': content, 'val': 'c'}},
        )  # fmt: skip
    with pytest.raises(UserError, match=r'differ in data\.train \(a and b\)'):
        make(find_records(tmp_path))


def test_a_note_names_the_devices_of_all_rows(tmp_path: Path) -> None:
    for config, device in (('resnet20_bl', 'CPU'), ('resnet20_se', 'NVIDIA H200')):
        errors = [33.0] if device == 'CPU' else [33.0] * 4
        write(tmp_path, config, 0, errors, device=device)
    assert 'in float32 on CPU or on NVIDIA H200' in str(table_3(find_records(tmp_path), ROWS))


def test_runs_on_fewer_images_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, 'resnet20_bl', 0, [60.0], data=FEWER)
    table = str(table_3(find_records(tmp_path), ROWS))
    assert f'{SHORTENED}ResNet-20: 164 epochs per run, 2000' in table
    assert 'delta' not in table


@pytest.mark.parametrize(
    ('config', 'settings'),
    [
        ('resnet20_bl', {}),
        ('densenet100_bl', {'data': FEWER}),
        ('densenet100_bl', {'epochs': 30}),
    ],
)
def test_table_2_of_the_paper_is_of_densenet_100_on_all_images(
    config: str, settings: dict, tmp_path: Path
) -> None:
    write(tmp_path, config, 0, [22.0], **{'epochs': 300, 'label': 'T#0'} | settings)
    table = str(table_2(find_records(tmp_path)))
    assert 'SHORTENED' in table
    assert '78.13' not in table  # which the paper has beside a teacher that shares no epoch


@pytest.mark.parametrize('shortened', [{'data': FEWER}, {'epochs': 40}])
def test_shortened_runs_with_teachers_are_labelled(shortened: dict, tmp_path: Path) -> None:
    taught = {'teacher_error': 40.0, 'agreement': 80.0, 'difference': 0.5}
    history = [{'epoch': 1, 'train': taught}]
    write(tmp_path, 'resnet20_ema', 0, [31.0], history=history, **shortened)
    assert 'SHORTENED' in str(teachers_table(find_records(tmp_path)))


@pytest.mark.parametrize(
    ('config', 'errors', 'settings'),
    [
        ('densenet100_sd_t2', [22.0] * 4, {'epochs': 300}),
        (
            'r152_sd', [21.0] * 2,
            {'epochs': 90, 'data': {'train': {'count': 1_281_167}, 'val': {'count': 50_000}}},
        ),
    ],
)  # fmt: skip
def test_teachers_of_full_runs_of_any_network_are_not_called_shortened(
    config: str, errors: list[float], settings: dict, tmp_path: Path
) -> None:
    history = [{'epoch': 1, 'train': {'teacher_error': 4.0, 'agreement': 8.0, 'difference': 0.5}}]
    write(tmp_path, config, 0, errors, history=history, **settings)
    assert 'SHORTENED' not in str(teachers_table(find_records(tmp_path)))


def test_runs_of_different_settings_are_not_mixed(records: Path) -> None:
    write(records, 'resnet20_sd_t2', 0, [40.0] * 4, epochs=8)
    with pytest.raises(UserError, match='differ in epochs'):
        table_3(find_records(records), ROWS)
    shutil.rmtree(records / 'resnet20_sd_t2')
    write(records / 'more', 'resnet20_bl', 0, [34.0])
    with pytest.raises(UserError, match='ResNet-20, BL have the same seed'):
        table_3(find_records(records), ROWS)


@pytest.mark.parametrize(('key', 'value'), [('taught_after', 3), ('generations', [62, 34, 34, 34])])
def test_a_row_mixes_no_runs_with_other_settings_of_the_method(
    key: str, value: object, tmp_path: Path
) -> None:
    first = {'generations': [34, 34, 34, 62]}
    for seed, settings in enumerate((first, first | {key: value})):
        write(tmp_path, 'resnet20_sd_unequal', seed, [37.0, 35.0, 33.0, 32.0])
        path = tmp_path / f'resnet20_sd_unequal/seed{seed}/run.json'
        record = json.loads(path.read_text())
        record['identity']['algorithm'] |= settings
        path.write_text(json.dumps(record))
    unequal = load_config(CIFAR / 'resnet20_sd_unequal.py')
    with pytest.raises(UserError, match=rf'records of .*SD unequal differ in algorithm\.{key}'):
        table_1(find_records(tmp_path), [ROWS[0], unequal])


def test_the_teachers_of_table_2_are_no_runs_of_bl(tmp_path: Path) -> None:
    """They share epochs, so they are not independent; the run that they start from is one."""
    for label, error in (('M', 34.0), ('T#0', 35.0), ('T#75', 36.0)):
        write(tmp_path / label.replace('#', ''), 'resnet20_bl', 0, [error], label=label)
    for table in (table_3, table_1):
        found = table(find_records(tmp_path), ROWS[:1])
        assert '34.00' in str(found) and '35' not in str(found)
        assert 'belong in no row' not in str(found)


def test_errors_at_ends_are_found_by_the_number_of_the_mini_generation(tmp_path: Path) -> None:
    """A run that started within mini-generation 2, without the record of the run before it."""
    write(tmp_path, 'resnet20_sd_t3', 0, [37.0, 35.0, 33.0, 32.0])
    path = tmp_path / 'resnet20_sd_t3/seed0/run.json'
    record = json.loads(path.read_text())
    del record['generations'][0]
    path.write_text(json.dumps(record))
    ours = cells(table_3(find_records(tmp_path), ROWS), 'ResNet-20', 'SD T=3', 'ours')
    assert ours[:4] == ['missing', '35.00', '33.00', '32.00']


def test_unfinished_runs_do_not_count(records: Path) -> None:
    write(records, 'resnet20_sd_t2', 0, [40.0] * 4, status='running')
    assert cells(table_3(find_records(records), ROWS), 'ResNet-20', 'SD T=2', 'ours')[6] == '0'


def test_methods_cost_what_was_measured(records: Path) -> None:
    write(records, 'resnet20_ban', 0, [34.0, 33.0, 32.5, 32.0])
    ban, kd, wider = (load_config(CIFAR / f'resnet20_{m}.py') for m in ('ban', 'kd', 'net2wider'))
    table = str(table_1(find_records(records), [ROWS[0], ROWS[3], ban, ROWS[2], kd, wider]))
    assert cells(table, 'BAN') == [
        'yes', 'no', '32.00', '1', '+2.90', '–', str(4 * 164 * 391), '4.00', '1312', '4.00',
    ]  # fmt: skip
    assert cells(table, 'SD T=3')[:2] == ['yes', 'yes']
    assert cells(table, 'SD T=3')[6:] == [str(164 * 391), '1.00', '328', '1.00']
    assert cells(table, 'SD T=2')[2:4] == ['missing', '0']
    assert cells(table, 'BL')[4:6] == ['', '']
    assert cells(table, 'KD')[:4] == ['no (ResNet-110)', 'no', 'missing', '0']
    assert cells(table, 'Net2WiderNet')[:2] == ['no (ResNet-20 of width 8)', 'no']
    # A run that started from a snapshot without a record only knows the errors until there.
    unknown = [{'epoch': 41, 'metrics': {'top1_error': 40.0}}]
    later = [{'epoch': e, 'iterations': 391, 'seconds': 2.0} for e in range(42, 165)]
    for history in (unknown, later):  # from another checkpoint not even these
        write(records, 'resnet20_sd_t2', 0, [40.0, 35.0, 34.0, 33.0], history=history)
        table = str(table_1(find_records(records), [ROWS[0], ROWS[2]]))
        assert cells(table, 'SD T=2')[2:4] == ['33.00', '1']
        assert cells(table, 'SD T=2')[6:] == ['missing'] * 4
        shutil.rmtree(records / 'resnet20_sd_t2')


def test_seconds_of_different_devices_are_neither_averaged_nor_compared(records: Path) -> None:
    write(records, 'resnet20_sd_t2', 0, [36.0, 35.0, 34.0, 33.0], device='GPU')
    table = str(table_1(find_records(records), [ROWS[0], ROWS[2], ROWS[3]]))
    assert cells(table, 'SD T=2')[6:] == [str(164 * 391), '1.00', '328', '–']
    assert cells(table, 'SD T=3')[6:] == [str(164 * 391), '1.00', '328', '1.00']
    assert 'on several devices, whose seconds are not compared' in table
    write(records, 'resnet20_bl', 3, [34.0], device='GPU')
    table = str(table_1(find_records(records), [ROWS[0], ROWS[2], ROWS[3]]))
    assert cells(table, 'BL')[6:] == [str(164 * 391), '1.00', '–', '–']
    assert cells(table, 'SD T=3')[8:] == ['328', '–']


def test_seconds_of_a_run_that_was_resumed_on_another_device_do_not_count(records: Path) -> None:
    history = [{'epoch': e + 1, 'iterations': 391, 'seconds': 2.0} for e in range(164)]
    for entry in history[:41]:
        entry['device'] = 'GPU'
    write(records, 'resnet20_sd_t2', 0, [36.0, 35.0, 34.0, 33.0], history=history)
    table = str(table_1(find_records(records), [ROWS[0], ROWS[2]]))
    assert cells(table, 'SD T=2')[6:] == [str(164 * 391), '1.00', '–', '–']


def test_rows_tell_runs_apart_by_teacher_schedule_and_first_weights(tmp_path: Path) -> None:
    """What the algorithm alone does not say; and records older than a setting have its default."""
    kd, deeper = (load_config(CIFAR / f'resnet20_{m}.py') for m in ('kd', 'net2deeper'))
    linear = load_config(CIFAR / 'resnet20_sd_linear.py')
    network = {'type': 'CifarResNet', 'depth': 32, 'num_classes': 100}
    taught = {'model': {'network': kd.model.network, 'teacher_network': network}, 'teacher': 'hash'}
    write(tmp_path, 'resnet20_bl', 0, [34.0])
    write(tmp_path, 'resnet20_kd', 0, [33.0], identity=taught)
    write(tmp_path / 'alone', 'resnet20_kd', 0, [50.0])
    write(tmp_path, 'resnet20_net2deeper', 0, [32.0], identity={'initial': deeper.initial})
    write(tmp_path, 'resnet20_sd_linear', 0, [36.0, 35.0, 34.0, 31.0])
    write(tmp_path, 'resnet20_sd_t2', 0, [36.0, 35.0, 34.0, 30.0])
    for path in tmp_path.glob('resnet20_[bs]*/*/run.json'):
        record = json.loads(path.read_text())
        algorithm = record['identity']['algorithm']
        if algorithm['schedule'] == 'cosine':
            for name in ('schedule', 'rates', 'features', 'copy_every', 'lag', 'decay'):
                del algorithm[name]
            path.write_text(json.dumps(record))
    table = str(table_1(find_records(tmp_path), [ROWS[0], ROWS[2], linear, kd, deeper]))
    found = [cells(table, name)[2] for name in ('BL', 'SD T=2', 'SD linear', 'KD', 'Net2DeeperNet')]
    assert found == ['34.00', '30.00', '31.00', '33.00', '32.00']
    assert cells(table, 'KD')[0] == 'no (ResNet-32)'  # of the record, not of the config
    assert 'Records that belong in no row: ResNet-20, KD (1).' in table


def test_teachers_are_compared_by_what_the_records_hold(tmp_path: Path) -> None:
    def history(agreement: float, difference: float) -> list[dict]:
        taught = {'teacher_error': 40.0, 'agreement': agreement, 'difference': difference}
        trains = [{'error': 50.0}, taught, taught | {'agreement': agreement + 2}]
        unknown = {'epoch': 1, 'metrics': {'top1_error': 60.0}}  # of a run that has no record
        return [unknown, *({'epoch': e, 'train': train} for e, train in enumerate(trains, 2))]

    write(tmp_path, 'resnet20_bl', 0, [34.0])
    for seed in (0, 1):
        write(tmp_path, 'resnet20_lag10', seed, [33.0 + seed], history=history(80.0 + seed, 0.25))
    write(tmp_path, 'resnet20_ema', 0, [31.0], history=history(70.0, 0.5))
    write(tmp_path, 'resnet20_sd_t2', 0, [36.0, 35.0, 34.0, 30.0], history=history(60.0, 1.0))
    write(
        tmp_path, 'resnet20_kd', 0, [33.0], history=history(60.0, 1.0),
        identity={'teacher': 'hash'},
    )  # fmt: skip
    write(tmp_path, 'resnet32_sd_t2', 0, [36.0, 35.0, 34.0, 29.0], history=history(90.0, 1.0))
    table = str(teachers_table(find_records(tmp_path)))
    assert cells(table, 'ResNet-20', 'resnet20_lag10') == [
        'l - 10', '40.00', '81.50', '0.25', '33.50 ± 0.71', '2',
    ]  # fmt: skip
    assert cells(table, 'ResNet-20', 'resnet20_ema')[0] == 'average up to l - 1, decay 0.99'
    for network, agreement in (('20', '61.00'), ('32', '91.00')):
        assert cells(table, f'ResNet-{network}', f'resnet{network}_sd_t2')[:3] == [
            'end of the previous mini-generation (of 4)', '40.00', agreement,
        ]  # fmt: skip
    assert 'resnet20_kd' not in table
    assert 'resnet20_bl' not in table
    assert 'SHORTENED' not in table
    with pytest.raises(UserError, match='no record of a run with a teacher of its own'):
        teachers_table([])


def test_table_4(tmp_path: Path) -> None:
    both = {'train': {'count': 1_281_167}, 'val': {'count': 50_000}}
    errors = {'bl': [(21.0, 5.5)], 'sd': [(22.0, 6.0), (20.5, 5.0)]}
    for row, ends in errors.items():
        generations = [{'last': {'top1_error': a, 'top5_error': b}} for a, b in ends]
        write(
            tmp_path, f'r152_{row}', 0, [0.0] * len(ends), epochs=90, data=both,
            generations=generations,
        )  # fmt: skip
    configs = [load_config(CIFAR.parent / f'r152_{row}.py') for row in ('bl', 'se', 'sd')]
    table = str(table_4(find_records(tmp_path), configs))
    assert cells(table, 'ResNet-152', 'BL', 'paper') == ['–', '–', '21.17', '5.66', '']
    assert cells(table, 'ResNet-152', 'BL', 'ours') == ['–', '–', '21.00', '5.50', '1']
    assert cells(table, 'ResNet-152', 'BL', 'delta') == ['–', '–', '-0.17', '-0.16', '']
    assert cells(table, 'ResNet-152', 'SE', 'ours') == ['missing'] * 4 + ['0']
    assert cells(table, 'ResNet-152', 'SD', 'ours') == ['22.00', '6.00', '20.50', '5.00', '1']
    assert cells(table, 'ResNet-152', 'SD', 'paper')[:4] == ['22.56', '6.44', '20.93', '5.48']


def test_errors_of_any_runs_have_no_column_for_the_paper(tmp_path: Path) -> None:
    """Four classes of one's own: no row of the paper, no top-5 error."""
    network = {'model': {'network': {'type': 'ResNet', 'depth': 18, 'num_classes': 4}}}
    for label, errors in (('SD', [20.0, 21.0]), ('BL', [30.0, 33.0])):
        for seed, error in enumerate(errors):
            write(tmp_path / label, 'r152_bl', seed, [error], identity=network, label=label)
    records = find_records(tmp_path)
    table = str(errors_table(records))
    header = [cell.strip() for cell in table.splitlines()[0].split('|')[1:-1]]
    assert header == ['network', 'label', 'top-1 error', 'n', 'gain over BL', 'p']
    assert cells(table, 'ResNet-18', 'BL') == ['31.50 ± 2.12', '2', '', '']
    p = ttest_ind([20.0, 21.0], [30.0, 33.0], equal_var=False).pvalue
    assert cells(table, 'ResNet-18', 'SD') == ['20.50 ± 0.71', '2', '+11.00', f'{p:.3f}']
    for record in records:
        record['generations'][-1]['last']['top5_error'] = 2.0
    assert cells(errors_table(records), 'ResNet-18', 'SD')[:2] == ['20.50 ± 0.71', '2.00 ± 0.00']
    with pytest.raises(UserError, match='no finished pretraining run'):
        errors_table([])


@pytest.mark.parametrize('make', [errors_table, teachers_table, table_2])
def test_a_row_is_of_one_method_and_different_seeds(make: Callable, tmp_path: Path) -> None:
    """Not of all methods that were given the same label."""
    taught = [{'epoch': 1, 'train': {'teacher_error': 1.0, 'agreement': 1.0, 'difference': 1.0}}]
    for seed, temperature in ((0, 2.0), (1, 2.0), (2, 3.0), (0, 2.0)):
        algorithm = load_once(CIFAR / 'resnet20_sd_t2.py').algorithm | {'temperature': temperature}
        identity = {'algorithm': algorithm | {'generations': [41] * 4}}
        write(
            tmp_path / str(len([*tmp_path.iterdir()])), 'resnet20_sd_t2', seed, [9.0] * 4,
            identity=identity, label='T#0', history=taught,
        )  # fmt: skip
    records = [record for folder in '0123' for record in find_records(tmp_path / folder)]
    make(records[:2])
    with pytest.raises(UserError, match=r'T#0 differ in algorithm\.temperature \(2\.0 and 3\.0\)'):
        make(records[:3])
    with pytest.raises(UserError, match=r'Two records of .*T#0 have the same seed'):
        make([*records[:2], records[3]])


def test_a_row_is_what_the_records_say_they_are(tmp_path: Path) -> None:
    """Not what the config that was overridden is called."""
    both = {'train': {'count': 1_281_167}, 'val': {'count': 50_000}}
    ends = [{'last': {'top1_error': a, 'top5_error': b}} for a, b in ((32.0, 12.0), (30.0, 10.0))]
    small = {'model': {'network': {'type': 'ResNet', 'depth': 18, 'num_classes': 1000}}}
    warm = load_once(CIFAR.parent / 'r152_sd.py').algorithm | {'temperature': 3.0}
    warm = {'algorithm': warm | {'generations': [45, 45]}}
    for seed, identity in enumerate((small, warm)):
        write(
            tmp_path / f'{seed}', 'r152_sd', seed, [0.0, 0.0], epochs=90, data=both,
            generations=ends, identity=identity,
        )  # fmt: skip
    records = find_records(tmp_path)
    records[1]['identity']['randomness'] = {'seed': 1}
    configs = [load_once(CIFAR.parent / f'r152_{row}.py') for row in ('bl', 'se', 'sd')]
    table = str(table_4(records, configs))
    assert cells(table, 'ResNet-152', 'SD', 'ours') == ['missing'] * 4 + ['0']
    assert 'Records that belong in no row: ResNet-18, SD (1); ResNet-152, SD (1).' in table


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ({'val_evaluator': {'type': 'Other'}}, r'val_evaluator\.type \(None and Other\)'),
        ({'world_size': 8}, r'world_size \(None and 8\)'),
        ({'batch_size': 64}, r'batch_size \(128 and 64\)'),
    ],
)
def test_what_changes_the_result_is_not_mixed(
    other: dict, message: str, records: Path, tmp_path: Path
) -> None:
    write(records, 'resnet20_sd_t2', 0, [40.0] * 4, identity=other)
    with pytest.raises(UserError, match=message):
        table_3(find_records(records), ROWS)


def test_table_2_reads_the_pairs(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.0), (1, 1.0)):
        for label, error in (('M', 9.0), ('T#0', 22.0), ('T#75', 23.0), ('M#75<T#0', 21.0)):
            write(
                tmp_path / f'{seed}{label}', 'densenet100_bl', seed, [error + shift],
                epochs=300, label=label,
            )  # fmt: skip
    table = str(table_2(find_records(tmp_path)))
    assert cells(table, 'self', 'ours') == ['77.50 ± 0.71', '76.50 ± 0.71']
    assert cells(table, 'student #75', 'ours') == ['78.50 ± 0.71', 'missing']
    assert cells(table, 'student #75', 'paper') == ['78.18', '78.02']
    assert cells(table, 'student #0', 'ours') == ['missing', '–']
    assert 'SHORTENED' not in table
    assert 'n = 2' in table
    with pytest.raises(UserError, match='no record of Table 2'):
        table_2([])


def test_welch_needs_two_values_a_side() -> None:
    assert welch_p([1.0], [2.0, 3.0]) == '–'
    assert welch_p([1.0, 1.0], [1.0, 1.0]) == '–'
    assert welch_p([1.0, 1.1], [9.0, 9.1]) == '<0.001'


def test_welch_does_not_pool_variances() -> None:
    ours, baseline = [10.0, 14.0, 18.0], [20.0, 20.5, 20.0, 20.5, 20.0]
    squares = [statistics.variance(values) / len(values) for values in (ours, baseline)]
    t = (statistics.fmean(ours) - statistics.fmean(baseline)) / math.sqrt(sum(squares))
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 4)
    assert welch_p(ours, baseline) == f'{2 * student_t.cdf(t, freedom):.3f}' == '0.115'
    assert f'{ttest_ind(ours, baseline).pvalue:.3f}' == '0.011'  # of Student's test
