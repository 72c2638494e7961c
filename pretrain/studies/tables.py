"""Tables 1 to 4, and tables of any runs, from ``run.json`` records. All our numbers come from
records."""

import json
import re
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from scipy.stats import ttest_ind

from pretrain.algorithm_checks import defaults
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.identity import differences
from pretrain.runs.record import devices_of
from pretrain.runs.tables import (
    DASH,
    MISSING,
    SHORTENED,
    Table,
    changed_during_training,
    check_alike,
    check_seeds,
    format_p,
    mean_std,
)
from pretrain.schedule import boundaries

METRIC = 'top1_error'
# Runs of a network may differ in these and still belong in one table.
SEEDS = 'randomness.seed', 'data_seed', 'teacher', 'initial_weights'
MAY_DIFFER = *SEEDS, 'algorithm', 'param_scheduler', 'model.teacher_network', 'initial'
ABOUT_GAIN = (
    'Gains are in percentage points; a positive gain means a lower error. p: two-sided t-test of '
    'Welch, which does not pair the seeds, not corrected for multiple comparisons.'
)
TRAINING_IMAGES = {'Cifar100': 50_000, 'ClassFolder': 1_281_167}
# The paper's epochs and number of training images by the type of network (Sections 4.1 and 4.2).
FULL = {'CifarResNet': (164, 50_000), 'CifarDenseNet': (300, 50_000)}
FULL |= dict.fromkeys(['ResNet', 'SEResNet'], (90, 1_281_167))

Arms = list[tuple[Config, list[dict]]]  # each config with its records


def welch_p(ours: Sequence[float], baseline: Sequence[float]) -> str:
    """Two-sided p-value of Welch's t-test; a dash if a side has fewer than two values, or if
    neither side varies."""
    if min(len(ours), len(baseline)) < 2 or len({*ours}) == len({*baseline}) == 1:
        return DASH
    return format_p(float(ttest_ind(ours, baseline, equal_var=False).pvalue))


def table_3(records: Sequence[dict], configs: Sequence[Config]) -> Table:
    """Errors at the ends of the mini-generations, at the best epoch and of the ensemble.

    Args:
        records: from :func:`pretrain.runs.tables.find_records`. Of unfinished runs, the
            mini-generations that have ended are shown.
        configs: the configs of the rows, in order; a row without records is shown as missing.

    Raises:
        UserError: if records do not belong in one table, or two have the same row and seed.
    """
    arms, notes, full = _arms(records, configs)
    header = ['backbone', 'alg.', 'source']
    header += ['M_#L1', 'M_#L2', 'M_#L3', 'M_#L4', 'best', 'ensemble', 'n', 'gain over BL', 'p']
    rows = []
    finished = [[r for r in mine if r['status'] == 'finished'] for _, mine in arms]
    baselines = {
        backbone_of(config): done
        for (config, _), done in zip(arms, finished, strict=True)
        if config.algorithm.name == 'BL'
    }
    for (config, mine), done in zip(arms, finished, strict=True):
        ours = [
            *(_errors_at_end(mine, k, METRIC) for k in range(4)),
            [min(g['best'][METRIC] for g in r['generations'] if 'best' in g) for r in done],
            [r['ensemble'][METRIC] for r in done if 'ensemble' in r],
        ]
        paper = [None] * (4 - len(config.paper[METRIC])) + list(config.paper[METRIC])
        paper += [config.paper.best, config.paper.get('ensemble')]
        if config.algorithm.name == 'BL':  # its only generation ends with the others' last one
            ours[0], ours[3] = ours[3], ours[0]
        gain = _gain(done, baselines.get(backbone_of(config), []))
        rows += _rows(config, paper, ours, full, len(mine), gain)
    return Table(header, rows, 3, [*notes, ABOUT_GAIN])


def table_4(records: Sequence[dict], configs: Sequence[Config]) -> Table:
    """Top-1 and top-5 errors on ImageNet at the ends of both mini-generations.

    The arguments and errors are those of :func:`table_3`.
    """
    arms, notes, full = _arms(records, configs)
    header = ['backbone', 'alg.', 'source']
    header += ['M_#L1 top-1', 'top-5', 'M_#L2 top-1', 'top-5', 'n']
    rows = []
    for config, mine in arms:
        ends = len(config.paper.top1_error)
        # BL's only generation ends with the second one of the others.
        columns = [(k - 2 + ends, name) for k in (0, 1) for name in ('top1_error', 'top5_error')]
        paper = [config.paper[name][k] if k >= 0 else None for k, name in columns]
        ours = [_errors_at_end(mine, k, name) if k >= 0 else [] for k, name in columns]
        rows += _rows(config, paper, ours, full, len(mine))
    return Table(header, rows, 3, notes)


def _rows(
    config: Config,
    paper: Sequence[float | None],
    ours: Sequence[list[float]],
    full: bool,
    n: int,
    gain: Sequence[str] = (),
) -> list[list[str]]:
    """The rows of a config: the paper's numbers, ours and, for ``full`` runs, the differences."""
    pairs = list(zip(paper, ours, strict=True))
    found = {
        'paper': [DASH if p is None else f'{p:.2f}' for p in paper],
        'ours': [DASH if p is None else mean_std(v) for p, v in pairs],
    }
    if full:
        found['delta'] = [
            DASH if p is None or not v else f'{statistics.fmean(v) - p:+.2f}' for p, v in pairs
        ]
    name, blank = [backbone_of(config), config.algorithm.name], [''] * (1 + len(gain))
    return [
        [*name, source, *cells, *([str(n), *gain] if source == 'ours' else blank)]
        for source, cells in found.items()
    ]


def table_1(records: Sequence[dict], configs: Sequence[Config]) -> Table:
    """The attributes of each method, and its measured error and cost.

    'same architecture?' is no if the method uses another network than the student's. 'one
    generation?' is no if it trains whole generations or uses another run's network. Iterations and
    seconds are those of training, summed over all generations and averaged over the seeds. The
    first config is the baseline. The arguments and errors are those of :func:`table_3`.
    """
    arms, notes, _ = _arms(records, configs)
    base = arms[0][1]
    header = ['method', 'same architecture?', 'one generation?', 'error (%)', 'n', 'gain over BL']
    header += ['p', 'iterations', '× BL', 'seconds', '× BL']
    rows = []
    for config, mine in arms:
        settings = mine[0]['identity'] if mine else config
        teacher = settings['model'].get('teacher_network') or config.teacher.network
        other = teacher or config.initial.network
        own = not (config.teacher.checkpoint or config.initial.checkpoint)
        attributes = [
            f'no ({_name(other)})' if other else 'yes',
            'yes' if own and not config.algorithm.fresh_student else 'no',
        ]
        error = [mean_std([_last(r) for r in mine]), str(len(mine))]
        cost = [*_cost(mine, base, 'iterations'), *_cost(mine, base, 'seconds')]
        rows.append([config.algorithm.name, *attributes, *error, *_gain(mine, base), *cost])
    notes.append(
        'The cost is that of the run alone, without the earlier run that trained a network of '
        'another architecture.'
    )
    notes.append(
        'The seconds of runs that shared a machine are not comparable with those of others.'
    )
    if len(devices_of(*(r for _, mine in arms for r in mine))) > 1:
        notes.append('The runs were made on several devices, whose seconds are not compared.')
    notes.append(ABOUT_GAIN)
    return Table(header, rows, 3, notes)


def teachers_table(records: Sequence[dict]) -> Table:
    """How similar teacher and student are, by network and origin of the teacher (Section 3.3.2).

    Agreement and KL are means over the training images of all epochs with a teacher: how often
    both predict the same class, and KL[f(x; θ_c_l) ‖ f(x; θ_l-1)] without a temperature.

    Records for which :func:`has_own_teacher` is False are ignored.

    Raises:
        UserError: if there are no such runs, or those of a network do not belong in one table.
    """
    mine = [*filter(has_own_teacher, records)]
    if not mine:
        raise UserError(
            'There is no record of a run with a teacher of its own: give records of SD runs.'
        )
    rows, notes = [], []
    for backbone, runs in _by_backbone(mine):
        notes.append(_describe(runs, '' if _is_full(runs[0]) else SHORTENED))
        for label in dict.fromkeys(r['label'] for r in runs):
            group = [r for r in runs if r['label'] == label]
            _one_method(f'{backbone}, {label}', group)
            source = _teacher_source(group[0]['identity']['algorithm'])
            taught = [means for r in group for means in _taught(r)]
            means = [
                f'{statistics.fmean(entry[name] for entry in taught):.2f}'
                for name in ('teacher_error', 'agreement', 'difference')
            ]
            error = mean_std([_last(r) for r in group])
            rows.append([backbone, label, source, *means, error, str(len(group))])
    header = ['network', 'teacher', 'c_l', "teacher's training error (%)", 'agreement (%)']
    return Table([*header, 'KL (nats)', 'error (%)', 'n'], rows, 3, notes)


def has_own_teacher(record: dict) -> bool:
    """Whether the teacher of a run was its own student at an earlier step."""
    return bool(_taught(record)) and not record['identity'].get('teacher')


def _taught(record: dict) -> list[dict]:
    """The training statistics of the epochs with a teacher. Epochs that another run trained may
    lack them."""
    trained = (entry.get('train', {}) for entry in record['history'])
    return [means for means in trained if 'difference' in means]


def _teacher_source(algorithm: Mapping[str, Any]) -> str:
    """Describe c_l, the iteration whose weights teach iteration l."""
    every, lag, decay = (algorithm.get(name) for name in ('copy_every', 'lag', 'decay'))
    if every is None:
        return f'end of the previous mini-generation (of {len(algorithm["generations"])})'
    lag = lag or 1
    c_l = f'l - {lag}' if every == 1 else f'l - {lag + every - 1} to l - {lag}'
    return f'average up to {c_l}, decay {decay}' if decay else c_l


def _by_backbone(records: Sequence[dict]) -> Iterator[tuple[str, list[dict]]]:
    """Each backbone with its records, which must not differ in other settings."""
    for backbone in sorted({backbone_of(r['identity']) for r in records}):
        mine = [r for r in records if backbone_of(r['identity']) == backbone]
        _one_setting(mine)
        yield backbone, mine


def errors_table(records: Sequence[dict]) -> Table:
    """The errors of any pretraining runs, with a row per network and label, the baseline first.

    An empty column, such as the top-5 error with five classes or fewer, is left out.

    Raises:
        UserError: if there are no records, or those of a network do not belong in one table.
    """
    if not records:
        raise UserError('There is no finished pretraining run: train some with tools/sweep.py.')
    rows, notes = [], []
    for backbone, mine in _by_backbone(records):
        notes.append(_describe(mine))
        arms = {label: [r for r in mine if r['label'] == label] for label in labels_of(mine)}
        base = arms.get('BL', [])
        for label, arm in arms.items():
            _one_method(f'{backbone}, {label}', arm)
            ends = [r['generations'][-1]['last'] for r in arm]
            top5 = [end['top5_error'] for end in ends if 'top5_error' in end]
            row = {'network': backbone, 'label': label, 'n': str(len(arm))}
            row['top-1 error'] = mean_std([_last(r) for r in arm])
            if top5:
                row['top-5 error'] = mean_std(top5)
            if label != 'BL' and base:
                row['gain over BL'], row['p'] = _gain(arm, base)
            rows.append(row)
    columns = ('network', 'label', 'top-1 error', 'top-5 error', 'n', 'gain over BL', 'p')
    gain = f' {ABOUT_GAIN}' * any('gain over BL' in row for row in rows)
    notes.append(f'Errors are in percent, after the last epoch, on the images in val.{gain}')
    return Table.of(rows, columns, 2, notes)


# A label in Table 2: the epochs that student and teacher, or a teacher, share with the source.
SHARED = re.compile(r'(?:M#(\d+)<)?T#(\d+)')
# The paper's accuracies (Section 3.3.2) by the same epochs, of DenseNet-100.
TABLE_2 = {(0, 0): 78.13, (75, 0): 78.18, (75, 75): 78.02}
TABLE_2 |= {(150, 0): 77.67, (150, 75): 77.58, (150, 150): 77.47}


def table_2(records: Sequence[dict]) -> Table:
    """Accuracies of students by the epochs that they and their teachers share (Section 3.3.2).

    The first row has the teachers themselves, for which the paper gives a mean of 77.65. The rows
    are runs of :class:`pretrain.studies.similarity.Similarity`; other records are ignored.

    Raises:
        UserError: if there are no such runs, or they do not belong in one table.
    """
    cells: dict[tuple[int | None, int], list[float]] = {}
    mine = []
    for record in records:
        if label := SHARED.fullmatch(record['label']):
            student, teacher = label.groups()
            key = None if student is None else int(student), int(teacher)
            cells.setdefault(key, []).append(100.0 - _last(record))
            mine.append(record)
    if not mine:
        raise UserError('There is no record of Table 2: train its runs with tools/similarity.py.')
    _one_setting(mine)
    for label in dict.fromkeys(r['label'] for r in mine):
        _one_method(label, [r for r in mine if r['label'] == label])
    full = _is_full(mine[0]) and backbone_of(mine[0]['identity']) == 'DenseNet-100'
    teachers = sorted({teacher for _, teacher in cells})
    rows = [['self', 'ours', *(mean_std(cells.get((None, t), [])) for t in teachers)]]
    for student in teachers:
        if full:
            values = (TABLE_2.get((student, teacher)) for teacher in teachers)
            cells_of_paper = [DASH if value is None else f'{value:.2f}' for value in values]
            rows.append([f'student #{student}', 'paper', *cells_of_paper])
        values = (
            mean_std(cells.get((student, teacher), [])) if teacher <= student else DASH
            for teacher in teachers
        )
        rows.append([f'student #{student}', 'ours', *values])
    counts = sorted({len(values) for values in cells.values()})
    notes = [_describe(mine, '' if full else SHORTENED)]
    notes.append(f'Accuracies are in percent, n = {" or ".join(map(str, counts))}.')
    return Table(['', 'source', *(f'teacher #{t}' for t in teachers)], rows, 2, notes)


def _arms(records: Sequence[dict], configs: Sequence[Config]) -> tuple[Arms, list[str], bool]:
    """The records of each config, matched by their identities and not by file names; the notes on
    them; and whether all are comparable with the paper."""
    # The teachers of Table 2 share epochs with each other, so they are no runs of BL.
    records = [r for r in _with_ends(records) if not SHARED.fullmatch(r['label'])]
    arms = [(c, [r for r in records if _row_key(r['identity']) == _row_key(c)]) for c in configs]
    for config, mine in arms:
        _one_method(f'{backbone_of(config)}, {config.algorithm.name}', mine)
    marks = [(mine, _unlike_the_paper(config, mine)) for config, mine in _networks(arms)]
    notes = [_describe(mine, mark) for mine, mark in marks]
    return arms, notes + _notes(records, arms), not any(mark for _, mark in marks)


def _one_method(name: str, records: Sequence[dict]) -> None:
    """Raise a UserError if records of one row differ in more than seeds and the name of their
    method, or repeat a seed."""
    if records:
        _one_setting(records, f'The records of {name}', (*SEEDS, 'algorithm.name'))
    check_seeds(name, records, _whole_seed)


def _whole_seed(record: dict) -> tuple:
    """All that distinguishes the runs of one row."""
    identity = record['identity']
    return _seed(record), *map(str, map(identity.get, ('data_seed', 'teacher', 'initial_weights')))


def _with_ends(records: Sequence[dict]) -> list[dict]:
    """The records of which at least one mini-generation has ended."""
    return [r for r in records if r['status'] == 'finished' or ended_generations(r)]


def _networks(arms: Arms) -> Arms:
    """The first config with records of each network, and all records of the network. UserError if
    they differ in settings."""
    networks = []
    for backbone in dict.fromkeys(backbone_of(config) for config, mine in arms if mine):
        found = [(c, mine) for c, mine in arms if mine and backbone_of(c) == backbone]
        records = [record for _, mine in found for record in mine]
        _one_setting(records)
        networks.append((found[0][0], records))
    return networks


def _unlike_the_paper(config: Config, records: Sequence[dict]) -> str:
    """Why runs are not comparable with the numbers of their config; empty if they are."""
    images = TRAINING_IMAGES[config.train_dataloader.dataset.type]
    first = records[0]
    if epochs_of(first) != config.epochs or first['data']['train']['count'] != images:
        return SHORTENED
    return changes_of(config, records)


def changes_of(config: Config, records: Sequence[dict]) -> str:
    """Why records of one setting and of any task are not comparable with the paper's numbers in
    their config although they have its size; empty if they are."""
    found = differences(recipe(config), recipe(records[0]['identity']))
    changes = [f'{key}={theirs} instead of {ours}' for key, (ours, theirs) in found.items()]
    changes += ['during training'] * bool(changed_during_training(records))
    return f'CHANGED ({", ".join(changes)}), not comparable with the paper. ' if changes else ''


def recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config or an identity, of any task, that all methods share: network,
    optimizer, batch and images."""
    keys = 'batch_size', 'optim_wrapper', 'image_size', 'image_scale', 'scale_range', 'crop_size'
    parts = {key: settings[key] for key in keys if settings.get(key) is not None}
    parts['micro_batches'] = settings.get('micro_batches') or 1
    if 'algorithm' not in settings:  # else it follows from the method and the epochs
        parts['param_scheduler'] = [
            {key: value for key, value in scheduler.items() if key != 'end'}  # follows from epochs
            for scheduler in settings.get('param_scheduler') or ()
        ]
    parts['network'] = settings['model'].get('network')
    parts['crop_area'] = settings.get('train_dataloader', {}).get('dataset', {}).get('crop_area')
    return json.loads(json.dumps(parts))


def _is_full(record: dict) -> bool:
    """Whether a run has as many epochs and training images as the paper's runs."""
    size = epochs_of(record), record['data']['train']['count']
    return size == FULL.get(record['identity']['model']['network']['type'])


def _notes(records: Sequence[dict], arms: Arms) -> list[str]:
    """Notes on unfinished runs and on records that fit no arm."""
    notes = []
    going_on = [
        f'{backbone_of(config)}, {config.algorithm.name}, seed {_seed(record)} '
        f'({ended_generations(record)} of {number_of(len(lengths_of(record)), "mini-generations")})'
        for config, mine in arms
        for record in mine
        if record['status'] != 'finished'
    ]
    if going_on:
        notes.append(
            f'NOT FINISHED: {"; ".join(going_on)}. Such runs count in n, with the errors of the '
            'mini-generations that have ended. Best, ensemble, gain and p are of finished runs.'
        )
    kinds = [_row_key(config) for config, _ in arms]
    others = (r['identity'] for r in _with_ends(records) if _row_key(r['identity']) not in kinds)
    names = Counter(f'{backbone_of(i)}, {i["algorithm"]["name"]}' for i in others)
    if names:
        listed = '; '.join(f'{name} ({count})' for name, count in names.items())
        notes.append(
            f'Records that belong in no row: {listed}. tools/table.py errors shows all records.'
        )
    return notes


def _row_key(settings: Mapping[str, Any]) -> tuple:
    """What distinguishes the rows of a table, from a config or an identity: network and method, but
    not the method's name, its lengths or which weights it takes from another run."""
    # Old records lack settings that were added later.
    algorithm = defaults()['algorithm'] | json.loads(json.dumps(settings['algorithm']))
    lengths = algorithm.pop('generations')
    for name in ('name', 'taught_after'):
        algorithm.pop(name, None)
    teacher = settings.get('teacher')  # in a record, a hash
    return (
        backbone_of(settings),
        lengths if isinstance(lengths, int) else len(lengths),
        isinstance(lengths, list) and len({*lengths}) > 1,
        bool(teacher.get('checkpoint') if isinstance(teacher, dict) else teacher),
        (settings.get('initial') or {}).get('network') or {},
        algorithm,
    )


def _one_setting(
    records: Sequence[dict], name: str = 'The records', may_differ: Sequence[str] = MAY_DIFFER
) -> None:
    # Old records lack settings that were added later.
    settings = [
        r['identity']
        | {'algorithm': defaults()['algorithm'] | dict(r['identity']['algorithm'])}
        | {'epochs': epochs_of(r), 'files': r['data']}
        for r in records
    ]
    check_alike(name, settings, may_differ)


def _describe(records: Sequence[dict], mark: str = '') -> str:
    """Describe runs of one setting, after a ``mark`` that warns of what they are not."""
    identity, data = records[0]['identity'], records[0]['data']
    devices = ' or on '.join(devices_of(*records))
    images = f'{data["train"]["count"]} training and {data["val"]["count"]} test images'
    return (
        f'{mark}{backbone_of(identity)}: '
        f'{number_of(epochs_of(records[0]), "epochs")} per run, {images}, '
        f'batch size {identity["batch_size"]}, in {identity["precision"]} on {devices}.'
        f'{changed_during_training(records)}'
    )


def epochs_of(record: dict) -> int:
    """The number of epochs of one generation of a run."""
    algorithm = record['identity']['algorithm']
    lengths = algorithm['generations']
    return lengths[0] if algorithm['fresh_student'] else sum(lengths)


def labels_of(records: Sequence[dict]) -> list[str]:
    """The labels of records, the baseline first."""
    return sorted({r['label'] for r in records}, key=lambda label: (label != 'BL', label))


def backbone_of(settings: Mapping[str, Any]) -> str:
    """The name of the network of a config or an identity."""
    return _name(settings['model']['network'])


def _name(network: Mapping[str, Any]) -> str:
    names = network.get('name'), network['type'].removeprefix('Cifar'), network.get('depth')
    name = names[0] or '-'.join(str(name) for name in names[1:] if name is not None)
    return f'{name} of width {network["width"]}' if 'width' in network else name


def _errors_at_end(records: Sequence[dict], k: int, name: str) -> list[float]:
    """A metric at the end of mini-generation k + 1 (k from 0), of the runs that validated it."""
    ends = []
    for record in records:
        end = boundaries(lengths_of(record))[k : k + 1]
        for found in record['generations']:
            if found.get('last_epoch') in end and name in found['last']:
                ends.append(found['last'][name])
    return ends


def _seed(record: dict) -> int:
    return record['identity']['randomness']['seed']


def lengths_of(record: dict) -> list[int]:
    """The lengths L_1, ..., L_K of a run's mini-generations, in epochs."""
    return record['identity']['algorithm']['generations']


def ended_generations(record: dict) -> int:
    """The number of a run's mini-generations that have ended."""
    epochs = record['history'][-1]['epoch'] if record['history'] else 0
    return bisect_right(boundaries(lengths_of(record)), epochs)


def _last(record: dict) -> float:
    return record['generations'][-1]['last'][METRIC]


def _gain(records: Sequence[dict], baseline: Sequence[dict]) -> tuple[str, str]:
    """The gain in points over the baseline, and its p-value; empty if there is none to compare."""
    if not records or not baseline or records is baseline:
        return '', ''
    ours, theirs = ([_last(r) for r in group] for group in (records, baseline))
    return f'{statistics.fmean(theirs) - statistics.fmean(ours):+.2f}', welch_p(ours, theirs)


def _cost(records: Sequence[dict], base: Sequence[dict], key: str) -> tuple[str, str]:
    """The mean of the runs' total ``key`` ('iterations' or 'seconds'), and its ratio to the
    baseline's; missing if a run started from a checkpoint whose record is not known. Seconds of
    different devices have neither a mean nor a ratio."""

    def is_whole(history: Sequence[dict]) -> bool:
        return all(e['epoch'] == n and key in e for n, e in enumerate(history, start=1))

    def known(group: Sequence[dict]) -> bool:
        return bool(group) and all(is_whole(record['history']) for record in group)

    def comparable(group: Sequence[dict]) -> bool:
        return key != 'seconds' or len(devices_of(*group)) == 1

    def total(group: Sequence[dict]) -> float:
        return statistics.fmean(sum(entry[key] for entry in r['history']) for r in group)

    if not known(records):
        return MISSING, MISSING
    if not comparable(records):
        return DASH, DASH
    ratio = f'{total(records) / total(base):.2f}' if known(base) else MISSING
    return f'{total(records):.0f}', ratio if comparable([*records, *base]) else DASH
