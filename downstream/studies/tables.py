"""Make the transfer table (Table 5) from run.json records alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from downstream.studies.replicates import Comparison, Values, check_replicates, replicate, spreads
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.record import devices_of, last_in_percent
from pretrain.runs.tables import (
    DASH,
    MISSING,
    SHORTENED,
    Table,
    changed_during_training,
    check_alike,
    check_seeds,
    mean_std,
)
from pretrain.studies.tables import changes_of, labels_of

TASKS = ('detection', 'segmentation', 'probe')
# The paper's numbers of training images, test images and epochs, and ResNet depth (Section 4.3),
# and the config that has its settings.
FULL = {'detection': (5_011, 4_952, 10, 152), 'segmentation': (10_582, 1_449, 50, 152)}
CONFIGS = {'detection': 'faster_rcnn_r152_voc07', 'segmentation': 'deeplabv3_r152_voc12aug'}
# Settings in which runs of a config may differ; stem, stride style and preprocessing follow the
# backbone.
MAY_DIFFER = ('randomness.seed', 'backbone', 'model.data_preprocessor')
MAY_DIFFER += ('model.backbone.deep_stem', 'model.backbone.avg_down', 'model.backbone.style')
MAY_DIFFER += ('model.roi_head.shared_head.style',)
COLUMNS = ['task', 'backbone', 'paper', 'mean', 'between', 'within', 'n', "paper's gain"]
ABOUT_MEANS = 'Metrics are in percent; n is pretrainings × fine-tunings of each.'
ABOUT_ERRORS = ' The top-1 error is that of pretraining.'
ABOUT_SCALE = ' Feature RMS: the root mean square of the last feature maps of the test images.'
ABOUT_BETWEEN = ' Between is the standard deviation between pretrainings.'
ABOUT_SPREADS = (
    ' Between and within are the standard deviations between pretrainings and between the '
    'fine-tunings of one pretraining, by analysis of variance.'
)
ABOUT_BOTH = (
    '†: each pretraining was fine-tuned once, so this standard deviation contains both spreads.'
)
ABOUT_GAINS = 'Gains are in percentage points, and paired by seed unless stated otherwise.'
ABOUT_TESTS = (
    ' In brackets: the 95 % confidence interval. p: two-sided t-test, not corrected for '
    'multiple comparisons.'
)


def transfer_table(records: Sequence[dict], labels: Sequence[str] = ()) -> Table:
    """The mean, standard deviations and n of each backbone, and its gain over the baseline.

    Metrics are in percent and gains in points. Each comparison has a sentence below the table;
    comparisons with the same sentence share it. A row has the name of its task, or of its config if
    several configs have that task. Columns without any number are left out.

    Args:
        records: as :func:`pretrain.runs.tables.find_records` returns them for ``TASKS``.
        labels: the labels of the backbones in row order, the baseline first; by default those of
            the records, BL first.

    Raises:
        UserError: if there is no record, if two records have the same backbone, config and seed, if
            records of a config differ in more than seed and backbone, or if replicates of a
            backbone differ in more than their seed.
    """
    labels = labels or labels_of(records)
    gains = comparisons(records, labels)
    tested = any(gain.p is not None for gain in gains.values())
    gain = f'gain over {labels[0]}{" [95 %]" * tested}'
    rows, notes, verdicts = [], [], {}
    for name, arms, values in _by_config(records, labels):
        mine = [record for arm in arms.values() for record in arm]
        mark = _unlike_the_paper(mine)
        paper = {} if mark else mine[0]['paper']
        notes.append(mark * bool(mine[0]['paper'].keys() & {*labels}) + _note(mine))
        for label, arm in arms.items():
            row = {'task': f'{name} {mine[0]["paper"]["metric"]}', 'backbone': label}
            row |= _row_of_label(arm, values[label], paper.get(label))
            if label != labels[0]:
                title = f'{name}, {label} against {labels[0]}'
                row[gain], row['p'] = gains[title].cells()
                if {label, labels[0]} <= paper.keys():
                    row["paper's gain"] = f'{paper[label] - paper[labels[0]]:+.2f}'
                verdicts.setdefault(gains[title].verdict(), []).append(title)
            rows.append(row)
    table = Table.of(rows, [*COLUMNS, gain, 'p', 'top-1 error', 'feature RMS'], 2)
    if len(verdicts) == 1 < len(gains):
        verdicts = {verdict: ['all comparisons'] for verdict in verdicts}
    notes += [f'{"; ".join(titles)}: {verdict}' for verdict, titles in verdicts.items()]
    scales = {
        record['label']: scale
        for record in records
        if (scale := record['identity']['backbone'].get('feature_scale'))
    }
    notes += [f'{label}: last feature maps × {scale:g}.' for label, scale in scales.items()]
    shown = {*table.header}
    spread = ABOUT_SPREADS if 'within' in shown else ABOUT_BETWEEN * ('between' in shown)
    errors = ABOUT_ERRORS * ('top-1 error' in shown)
    notes.append(ABOUT_MEANS + errors + ABOUT_SCALE * ('feature RMS' in shown) + spread)
    if any('†' in row.get('between', '') for row in rows):
        notes.append(ABOUT_BOTH)
    if len(labels) > 1:
        notes.append(ABOUT_GAINS + ABOUT_TESTS * tested)
    return replace(table, notes=notes)


def in_order(records: Sequence[dict], first: Sequence[str]) -> list[str]:
    """The labels of records: those of ``first``, the baseline at their head, then the others; BL is
    the baseline if ``first`` is empty. UserError if a label of ``first`` has no record."""
    known = labels_of(records)
    if unknown := [label for label in first if label not in known]:
        raise UserError(
            f'No finished run has the label {unknown[0]}: the labels are {", ".join(known)}.'
        )
    return [*dict.fromkeys([*first, *known])]


def comparisons(records: Sequence[dict], labels: Sequence[str]) -> dict[str, Comparison]:
    """The comparisons of :func:`transfer_table` by title, such as 'detection, SD against BL'."""
    return {
        f'{name}, {label} against {labels[0]}': Comparison.of(values[label], values[labels[0]])
        for name, _, values in _by_config(records, labels)
        for label in labels[1:]
    }


def _by_config(
    records: Sequence[dict], labels: Sequence[str]
) -> Iterator[tuple[str, dict[str, list[dict]], dict[str, Values]]]:
    """For each config, its name in the table, and its records and values by label."""
    if not records:
        raise UserError('There is no finished downstream run: train some with tools/transfer.py.')
    configs = sorted({(r['task'], r['config']) for r in records})
    tasks = [task for task, _ in configs]
    for task, config in configs:
        mine = [r for r in records if r['config'] == config]
        _one_setting(config, mine)
        arms = {label: [r for r in mine if r['label'] == label] for label in labels}
        values = {label: _values(label, config, arm) for label, arm in arms.items()}
        yield task if tasks.count(task) == 1 else config, arms, values


def _one_setting(config: str, records: Sequence[dict]) -> None:
    """Check that the runs of a config can be compared. UserError if not."""
    settings = []
    for record in records:
        *_, epochs, depth = _size(record)
        more = {'files': record['data'], 'epochs': epochs, 'depth': depth}
        settings.append(record['identity'] | more)
    check_alike(f'The records of {config}', settings, MAY_DIFFER)


def _size(record: dict) -> tuple[int, int, int, int]:
    """The numbers of training images, test images and epochs, and the depth of the backbone."""
    data, depth = record['data'], record['identity']['backbone']['depth']
    return data['train']['count'], data['val']['count'], record['history'][-1]['epoch'], depth


def _values(label: str, config: str, records: Sequence[dict]) -> Values:
    """The metric after the last epoch, in percent, by replicate and fine-tuning seed."""
    backbones = {(b := r['identity']['backbone'])['weights_sha256']: b for r in records}
    check_replicates(label, [*backbones.values()])
    check_seeds(f'{label}, {config}', records, _seeds)
    values = {}
    for record in records:
        pretraining, seed = _seeds(record)
        values.setdefault(pretraining, {})[seed] = last_in_percent(record)
    return values


def _seeds(record: dict) -> tuple[int | str, int]:
    """The replicate, and the seed of its fine-tuning."""
    identity = record['identity']
    return replicate(identity['backbone']), identity['randomness']['seed']


def _row_of_label(records: Sequence[dict], values: Values, paper: float | None) -> dict[str, str]:
    """The cells of a backbone's row; those without an entry are left out."""
    row = {} if paper is None else {'paper': f'{paper:.2f}'}
    errors = {
        replicate(b): b['top1_error']
        for r in records
        if 'top1_error' in (b := r['identity']['backbone'])
    }
    if errors:
        row['top-1 error'] = mean_std([*errors.values()])
    if records and all('features' in r for r in records):
        row['feature RMS'] = _three_digits([r['features']['rms'] for r in records])
    if not values:
        return row | {'mean': MISSING, 'n': '0'}
    between, within = spreads([[*runs.values()] for runs in values.values()])
    both = ' †' if within is None else ''
    counts = sorted({len(runs) for runs in values.values()})
    return row | {
        'mean': f'{fmean(fmean(runs.values()) for runs in values.values()):.2f}',
        'between': DASH if between is None else f'{between:.2f}{both}',
        'within': DASH if within is None else f'{within:.2f}',
        'n': f'{len(values)} × {" or ".join(map(str, counts))}',
    }


def _three_digits(values: Sequence[float]) -> str:
    spread = f' ± {stdev(values):.2g}' if len(values) > 1 else ''
    return f'{fmean(values):.3g}{spread}'


def _unlike_the_paper(records: Sequence[dict]) -> str:
    """Why runs of a config are not comparable with the paper's numbers; empty if they are."""
    task = records[0]['task']
    if _size(records[0]) != FULL.get(task):
        return SHORTENED
    return changes_of(load_config(f'configs/downstream/{CONFIGS[task]}.py'), records)


def _note(records: Sequence[dict]) -> str:
    train, val, epochs, depth = _size(records[0])
    devices = ' or on '.join(devices_of(*records))
    trained = number_of(epochs, 'epochs') if epochs else 'no training'
    images = f'{train} training and {val} test images'
    how = f'in {records[0]["identity"]["precision"]} on {devices}'
    changed = changed_during_training(records)
    return f'{records[0]["config"]}: ResNet-{depth}, {images}, {trained}, {how}.{changed}'
