"""A report of many runs: one self-contained HTML page."""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from downstream.pictures import SCORE_THRESHOLD
from downstream.studies.replicates import Comparison
from downstream.studies.tables import TASKS, comparisons, in_order, transfer_table
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.config import walk
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.identity import differences, shortened
from pretrain.runs.record import devices_of, factor_to_percent, read_records, record_files
from pretrain.runs.tables import DASH, Table
from pretrain.studies import curves
from pretrain.studies.paper_tables import TITLES, paper_table, tables_with_records
from pretrain.studies.tables import backbone_of, epochs_of, labels_of, lengths_of

TEMPLATE = Path(__file__).with_suffix('.html')
LABELS = (
    'BL is the baseline, SE the snapshot ensemble and SD Snapshot Distillation, whose teacher is '
    'an earlier snapshot of the same run. Other labels are names that were given to runs.'
)
PICTURES = 4  # of each downstream config
PICTURE_SIDE = 480  # at most, in pixels
# Keys of an identity that other tables of the page show: seeds, and the source of the backbone.
NOT_SETTINGS = 'randomness', 'data_seed', 'backbone.seed', 'backbone.source', 'backbone.top1_error'
NOT_SETTINGS += tuple(f'backbone.{kind}_sha256' for kind in ('source', 'recipe', 'weights'))


@dataclass(frozen=True)
class RecordedRun:
    """A record, and the folder of its run; None if the record comes from a .jsonl file."""

    record: dict
    folder: Path | None = None

    @property
    def label(self) -> str:
        return self.record['label']

    @property
    def seed(self) -> int:
        return self.record['identity']['randomness']['seed']


@dataclass(frozen=True)
class Section:
    """A section of the page: paragraphs, tables, figures, and rows of pictures, one per image."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()  # with their captions
    figures: Sequence[dict] = ()
    pictures: Sequence[dict] = ()


def write_report(sources: Sequence[Path], out: Path, labels: Sequence[str] = ()) -> None:
    """Write the page.

    Args:
        sources: folders with runs, or files of records, as
            :func:`pretrain.runs.record.read_records` takes them.
        out: the HTML file; an existing file is replaced.
        labels: the labels that the transfer table shows first, the baseline at the top; all others
            follow, and by default BL comes first.

    Raises:
        UserError: if there is no record, a record cannot be read, or ``out`` is a folder.
    """
    if out.is_dir():
        raise UserError(f'{out} is a folder: name the file to write, such as {out}/report.html.')
    runs = find_runs(sources)
    if not runs:
        raise UserError(
            f'There is no run.json in {", ".join(map(str, sources))}: name the work directory of '
            'one or more runs.'
        )
    sections = [_transfer(runs, labels)]
    for part in (_paper, _curves, _cost, _settings, _pictures, _results, _provenance):
        sections.append(part(runs))
    finished = sum(run.record['status'] == 'finished' for run in runs)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = template.from_string(TEMPLATE.read_text()).render(
        title='Snapshot Distillation: report of the runs',
        about=f'{number_of(len(runs), "runs")}, {finished} of them finished, in '
        f'{", ".join(source.resolve().name for source in sources)}. {LABELS}',
        sections=[s for s in sections if s.text or s.tables or s.figures or s.pictures],
    )
    write_atomically(out, page.encode())


def find_runs(sources: Iterable[Path]) -> list[RecordedRun]:
    """The runs in folders and files of records, each once, sorted by label and seed."""
    found = {}
    for source in sources:
        for path in record_files(source) if source.is_dir() else [source]:
            folder = path.parent if path.name == 'run.json' else None
            for number, record in enumerate(read_records(path)):
                found[path.resolve(), number] = RecordedRun(record, folder)
    order = labels_of([run.record for run in found.values()])
    return sorted(found.values(), key=lambda run: (order.index(run.label), run.seed))


def extra_cost(record: dict) -> tuple[float, float] | None:
    """How much the teacher adds to the time of a run, as fractions of its time without a teacher.

    Returns:
        The paper's claim (Section 3.3.4), a third of every iteration with a teacher; and the
        measured value, which compares all iterations with the pace of the first mini-generation.
        None unless the teacher starts after the first mini-generation (Eqn 4), at least one
        iteration had a teacher and all were made on one device.
    """
    algorithm = record['identity']['algorithm']
    lengths = algorithm['generations']
    pace = {g['generation']: g['seconds_per_iter'] for g in record['generations']}
    if (
        not algorithm['teacher_weight']
        or algorithm['taught_after'] != lengths[0]
        or algorithm['fresh_student']
        or len(pace) < 2
        or len(devices_of(record)) > 1
    ):
        return None
    iterations = defaultdict(int)
    for entry in record['history']:
        iterations[entry['generation']] += entry['iterations']
    spent = sum(iterations[k] * pace[k] for k in pace)
    return sum(lengths[1:]) / sum(lengths) / 3, spent / (sum(iterations.values()) * pace[1]) - 1


def _finished(runs: Iterable[RecordedRun], *tasks: str) -> list[dict]:
    records = (run.record for run in runs)
    return [r for r in records if r['status'] == 'finished' and r['task'] in tasks]


def _groups(runs: Iterable[RecordedRun], *tasks: str) -> list[tuple[str, list[RecordedRun]]]:
    """Groups of comparable runs, with titles: pretraining runs of one network on the same images,
    or runs of one downstream config."""
    groups = defaultdict(list)
    for run in runs:
        record, title, key = run.record, run.record['config'], ''
        if record['task'] == 'classification':
            network, data = record['identity']['model']['network'], record['data']['train']
            title = f'{backbone_of(record["identity"])} on {number_of(data["count"], "images")}'
            key = json.dumps([network, data])
        if record['task'] in tasks:
            groups[title, key].append(run)
    return [(title, group) for (title, _), group in groups.items()]


def _first_of_each_label(runs: Iterable[RecordedRun]) -> dict[str, RecordedRun]:
    found = {}
    for run in runs:
        found.setdefault(run.label, run)
    return found


def _figure(figure: Figure, caption: str) -> dict[str, str]:
    return {'caption': caption, 'svg': curves.as_svg(figure, caption)}


def _transfer(runs: Sequence[RecordedRun], labels: Sequence[str]) -> Section:
    title = 'Transfer'
    if not (records := _finished(runs, *TASKS)):
        return Section(title)
    try:
        order = in_order(records, labels)
        table = transfer_table(records, order)
        gains = comparisons(records, order)
    except UserError as error:
        return Section(title, [str(error)])
    gains = {name: gain for name, gain in gains.items() if gain.difference is not None}
    caption = f'Gain over {order[0]} in points, with its 95 % confidence interval if there is one'
    figures = [_figure(_gain_figure(gains), caption)] if gains else []
    return Section(title, tables=[('Transfer (Table 5)', table)], figures=figures)


def _gain_figure(gains: dict[str, Comparison]) -> Figure:
    with matplotlib.rc_context(curves.FONT):
        figure = Figure(figsize=(4.6, 0.9 + 0.45 * len(gains)), layout='constrained')
        axes = figure.subplots()
        for row, gain in enumerate(gains.values()):
            if gain.interval:
                axes.plot(gain.interval, [row, row], color=curves.COLOURS[0], lw=2)
            axes.plot(gain.difference, row, 'o', color=curves.COLOURS[0])
        axes.axvline(0, color='0.5', lw=0.8)
        names = [name.replace(' against', '\nagainst') for name in gains]
        axes.set_yticks(range(len(gains)), names)
        axes.set(ylim=(len(gains) - 0.5, -0.5), xlabel='points')
        axes.grid(axis='x', alpha=0.25, lw=0.5)
        axes.spines[['top', 'right', 'left']].set_visible(False)
        axes.tick_params(axis='y', length=0)
    return figure


def _paper(runs: Sequence[RecordedRun]) -> Section:
    records = [run.record for run in runs if run.record['task'] == 'classification']
    lengths = defaultdict(set)
    for record in records:
        lengths[backbone_of(record['identity'])].add(epochs_of(record))
    # Runs of one network but of different lengths do not belong in one table.
    several = any(len(found) > 1 for found in lengths.values())
    groups = defaultdict(list)
    for record in records:
        groups[epochs_of(record) if several else None].append(record)
    text, tables = [], []
    for epochs, mine in sorted(groups.items()):
        for name, rows in tables_with_records(mine):
            title = TITLES[name]
            if several:
                title += f', {number_of(epochs, "epochs")}'
            try:
                tables.append((title, paper_table(name, mine, rows)))
            except UserError as error:
                text.append(f'{title}: {error}')
    return Section('Pretraining', text, tables)


def _curves(runs: Sequence[RecordedRun]) -> Section:
    figures = []
    for title, group in _groups(runs, 'classification'):
        by_length = defaultdict(list)  # runs of whole generations are longer
        for run in group:
            length = sum(lengths_of(run.record))
            if length > 1 and all(epochs for epochs, _ in curves.curves(run.record).values()):
                by_length[length].append(run)
        for length, mine in by_length.items():
            figures += _curves_of(f'{title}, {length} epochs', _first_of_each_label(mine))
    return Section('Curves', figures=figures)


def _curves_of(title: str, first: dict[str, RecordedRun]) -> list[dict[str, str]]:
    shown = dict([*first.items()][: len(curves.COLOURS)])
    seeds = ', '.join(f'{label} with seed {run.seed}' for label, run in shown.items())
    if left_out := [label for label in first if label not in shown]:
        seeds += f'; not drawn: {", ".join(left_out)}'
    records = {label: run.record for label, run in shown.items()}
    caption = f'{title}: training and test errors, with the last epochs magnified ({seeds})'
    figures = [_figure(curves.error_figure(records, stacked=True), caption)]
    found = {
        label: curves.diagnostics(run.record, curves.read_scalars(run.folder) if run.folder else [])
        for label, run in shown.items()
    }
    for axis in next(iter(found.values())):
        drawn = {label: panels[axis] for label, panels in found.items()}
        if any(x for panel in drawn.values() for x, _ in panel.values()):
            figure = curves.line_figure(drawn, axis, curves.generation_ends(records))
            figures.append(_figure(figure, f'{title}: {axis}'))
    return figures


def _cost(runs: Sequence[RecordedRun]) -> Section:
    text, tables = [], []
    for title, group in _groups(runs, 'classification'):
        timed, untimed = defaultdict(list), []  # runs of one label may have several lengths
        for run in group:
            record, epochs = run.record, sum(lengths_of(run.record))
            if record['status'] != 'finished':
                continue
            if sum('iterations' in entry for entry in record['history']) == epochs:
                devices = ' and '.join(devices_of(record))
                key = run.label, len(record['generations']), epochs, devices
                timed[key].append(record)
            else:
                untimed.append(f'{run.label} with seed {run.seed}')
        if untimed:
            text.append(
                f'{title}: the cost of {", ".join(untimed)} is unknown, because the times of the '
                'epochs before the start are missing: there was no run.json beside the checkpoint.'
            )
        if timed:
            tables.append((f'{title}: cost', _cost_table(timed)))
    return Section('Cost', text, tables)


def _cost_table(timed: dict[tuple[str, int, int, str], list[dict]]) -> Table:
    """A row for each key of ``timed``: label, number of mini-generations, epochs, device."""
    most = max(count for _, count, _, _ in timed)
    rows, first_rows = [], {}  # the seconds of each device's first row
    for (label, count, _, device), records in timed.items():
        iterations, seconds = (
            fmean(sum(entry[key] for entry in record['history']) for record in records)
            for key in ('iterations', 'seconds')
        )
        first = first_rows.setdefault(device, seconds)
        row = {'run': label, 'device': device, 'n': str(len(records))}
        for k in range(most):
            paces = [r['generations'][k]['seconds_per_iter'] for r in records if k < count]
            row[f's/iteration, generation {k + 1}'] = f'{fmean(paces):.3g}' if paces else DASH
        row['iterations'] = f'{iterations:.0f}'
        row['seconds'] = f'{seconds:.0f}'
        row["× device's first row"] = f'{seconds / first:.2f}'
        extras = [extra for record in records if (extra := extra_cost(record))]
        for column, name in enumerate(("teacher's extra, paper", 'measured')):
            mean = fmean(extra[column] for extra in extras) if extras else None
            row[name] = DASH if mean is None else f'{100 * mean:+.1f} %'
        peaks = [r['peak_memory_mb'] for r in records if r['peak_memory_mb']]
        row['peak memory (MiB)'] = f'{max(peaks):.0f}' if peaks else DASH  # it trained nothing
        rows.append(row)
    notes = [
        'Seconds are of training alone, and means over the seeds; seconds per iteration are the '
        'median over a mini-generation. Runs that shared a machine are not comparable.',
        "The teacher's extra cost: the paper's claim is for its forward pass (Section 3.3.4); the "
        "measured value compares a run with the pace of the run's own first mini-generation.",
    ]
    return Table.of(rows, notes=notes)


def _settings(runs: Sequence[RecordedRun]) -> Section:
    tables = []
    for title, group in (*_groups(runs, 'classification'), *_groups(runs, *TASKS)):
        first = _first_of_each_label(group)
        base, *others = identities = [run.record['identity'] for run in first.values()]
        keys = {key for other in others for key in differences(base, other, NOT_SETTINGS)}
        values = [dict(walk(identity)) for identity in identities]
        rows = [[key, *(_shown(of_run.get(key)) for of_run in values)] for key in sorted(keys)]
        if rows:
            table = Table(['setting', *first], rows, 1 + len(first))
            tables.append((f'{title}: settings that differ', table))
    return Section('Settings', tables=tables)


def _shown(value: Any) -> str:
    """A value as text, with hashes shortened; a dash for None."""
    if value is None:
        return DASH
    return shortened(value if isinstance(value, str) else json.dumps(value))


def _pictures(runs: Sequence[RecordedRun]) -> Section:
    found, damaged = [], []
    for config, group in _groups(runs, *TASKS):
        drawn = [run for run in group if run.folder and (run.folder / 'pictures').is_dir()]
        first = _first_of_each_label(drawn)
        folders = {label: run.folder / 'pictures' for label, run in first.items()}
        names = [{path.name for path in folder.glob('*.png')} for folder in folders.values()]
        for name in sorted(set.intersection(*names))[:PICTURES] if names else ():
            title = f'{config}, image {Path(name).stem}'
            paths = {label: folder / name for label, folder in folders.items()}
            if unreadable := [path for path in paths.values() if not _is_image(path)]:
                damaged += unreadable
                continue
            halves = {label: _halves(path) for label, path in paths.items()}
            truth, _ = next(iter(halves.values()))
            pictures = [
                ('ground truth', truth),
                *((label, half) for label, (_, half) in halves.items()),
            ]
            found.append({'title': title, 'pictures': [_picture(*pair) for pair in pictures]})
    text = (
        'The predictions of each backbone for the same images, from its first run with pictures. '
        f'Of a detector, the boxes with a score above {SCORE_THRESHOLD} are drawn.'
    )
    told = [f'Left out, because a picture is damaged: {path}.' for path in damaged]
    return Section('Pictures', [text] * bool(found) + told, pictures=found)


def _is_image(path: Path) -> bool:
    """Whether a picture can be read: a run that was killed may have left a part of one."""
    try:
        Image.open(path).load()
    except (OSError, SyntaxError):  # Pillow raises the latter for a damaged PNG
        return False
    return True


def _halves(path: Path) -> tuple[Image.Image, Image.Image]:
    """The ground truth and the prediction, which PicturesHook draws side by side."""
    image = Image.open(path).convert('RGB')
    middle, height = image.width // 2, image.height
    return image.crop((0, 0, middle, height)), image.crop((middle, 0, 2 * middle, height))


def _picture(caption: str, image: Image.Image) -> dict[str, Any]:
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=85)
    uri = 'data:image/jpeg;base64,' + base64.b64encode(data.getvalue()).decode()
    return {'caption': caption, 'data': uri, 'width': image.width, 'height': image.height}


def _results(runs: Sequence[RecordedRun]) -> Section:
    rows = []
    for run in runs:
        record, metric = run.record, run.record['paper']['metric']
        factor = factor_to_percent(metric)
        measured = [g for g in record['generations'] if metric in g.get('last', {})]
        last, best = (
            f'{factor * measured[-1][which][metric]:.2f}' if measured else DASH
            for which in ('last', 'best')
        )
        together = record.get('ensemble', {}).get(metric)
        row = {
            'config': record['config'],
            'label': run.label,
            'seed': str(run.seed),
            'status': record['status'],
            'epochs': str(record['history'][-1]['epoch'] if record['history'] else 0),
            'metric': metric,
            'last': last,
            'best': best,
            'ensemble': DASH if together is None else f'{together:.2f}',
            'minutes': f'{record["wall_seconds"] / 60:.1f}',
        }
        rows.append(row)
    notes = ['Metrics are in percent; last and best are of the last mini-generation.']
    return Section('Runs', tables=[('All runs', Table.of(rows, texts=2, notes=notes))])


def _provenance(runs: Sequence[RecordedRun]) -> Section:
    rows = []
    for run in runs:
        record, data = run.record, run.record['data']
        weights = record['identity'].get('backbone', {}).get('weights_sha256')
        changed = ', '.join(change['key'] for change in record['accepted_changes'])
        row = {
            'config': record['config'],
            'label': run.label,
            'seed': str(run.seed),
            'commit': _shown(record['git_commit']),
            'device': ' and '.join(devices_of(record)),
            'processes': str(record['world_size']),
            'training images': str(data['train']['count']),
            'test images': str(data['val']['count']),
            'data': _shown(data['train']['sha256']),
            'starts from': _shown(weights or record['started_from']),
            'changed during the run': changed or DASH,
        }
        rows.append(row)
    notes = [
        'The hashes of the commit, of the training file list and of the weights are shortened.'
    ]
    found = [run.record['versions'] for run in runs]
    versions = [
        {'package': p, 'version': ', '.join(sorted({of_run.get(p, DASH) for of_run in found}))}
        for p in sorted(set().union(*found))
    ]
    tables = [
        ('Where each run comes from', Table.of(rows, texts=len(rows[0]), notes=notes)),
        ('Versions', Table.of(versions, texts=2)),
    ]
    return Section('Environment and provenance', tables=tables)
