"""A report of many runs: one HTML page that needs no other file and no network."""

import base64
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from downstream.pictures import SCORE_THRESHOLD
from downstream.replicates import Comparison
from downstream.tables import PERCENT, TASKS, backbones, comparisons, transfer_table
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import UserError
from pretrain.runs.identity import differences
from pretrain.runs.record import read_record, read_records
from pretrain.studies.curves import (
    COLOURS,
    FONT,
    as_svg,
    curves,
    diagnostics,
    error_figure,
    generation_ends,
    line_figure,
    read_scalars,
)
from pretrain.studies.paper_tables import TITLES, paper_table, tables_with_records
from pretrain.studies.tables import backbone_of

TEMPLATE = Path(__file__).with_suffix('.html')
PICTURES = 4  # of each downstream config
PICTURE_SIDE = 480  # pixels, at most
NONE = '–'
# What the page states elsewhere of an identity: its seeds, and where the backbone comes from.
NOT_SETTINGS = (
    'randomness',
    'data_seed',
    'backbone.seed',
    'backbone.source',
    'backbone.top1_error',
)
NOT_SETTINGS += tuple(f'backbone.{kind}_sha256' for kind in ('source', 'recipe', 'weights'))


@dataclass(frozen=True)
class Run:
    """A record and, unless it comes from a collection of records, the folder of its run."""

    record: dict
    folder: Path | None = None

    @property
    def label(self) -> str:
        return self.record['label']

    @property
    def seed(self) -> int:
        return self.record['identity']['randomness']['seed']


@dataclass(frozen=True)
class Table:
    """A table of the page; its first ``texts`` columns are not numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    notes: Sequence[str] = ()

    @classmethod
    def from_markdown(cls, caption: str, text: str) -> 'Table':
        """Read what :func:`pretrain.runs.tables.markdown` wrote."""
        lines = text.splitlines()
        cells = [
            [cell.strip() for cell in line[1:-1].split('|')] for line in lines if line[:1] == '|'
        ]
        notes = [line.removeprefix('- ') for line in lines if line.startswith('- ')]
        header, rule, *rows = cells
        return cls(caption, header, rows, rule.count('-' * 3), notes)


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, tables, figures, and rows of pictures of the same image."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[dict] = ()
    pictures: Sequence[dict] = ()


@dataclass
class Group:
    """Pretraining runs of one network on the same pictures, by label and in the order of seeds."""

    title: str
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))

    @property
    def first(self) -> dict[str, Run]:
        """One run of each label."""
        return {label: runs[0] for label, runs in self.runs.items()}


def write_report(sources: Sequence[Path], out: Path, labels: Sequence[str] = ()) -> None:
    """Write the page.

    Args:
        sources: folders with runs, or files of records, as in
            :func:`pretrain.runs.record.read_records`.
        out: the HTML file, which is replaced.
        labels: the backbones of the transfer table in their order, of which the first is the
            baseline; by default BL first.

    Raises:
        UserError: if there is no record, one cannot be read, or ``out`` is a folder.
    """
    if out.is_dir():
        raise UserError(f'{out} is a folder: name the file to write, such as {out}/report.html.')
    runs = find_runs(sources)
    if not runs:
        raise UserError(
            f'There is no run.json in {", ".join(map(str, sources))}: name the work directory of '
            'one or more runs.'
        )
    sections = [
        section
        for section in (
            _transfer(runs, labels),
            _paper(runs),
            _curves(runs),
            _cost(runs),
            _settings(runs),
            _pictures(runs),
            _results(runs),
            _provenance(runs),
        )
        if section.tables or section.figures or section.pictures or section.text
    ]
    finished = sum(run.record['status'] == 'finished' for run in runs)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).from_string(TEMPLATE.read_text())
    page = template.render(
        title='Snapshot Distillation: report of the runs',
        about=f'{len(runs)} runs, {finished} of them finished, in '
        f'{", ".join(source.name for source in sources)}.',
        sections=sections,
    )
    write_atomically(out, page.encode())


def find_runs(sources: Iterable[Path]) -> list[Run]:
    """The runs in folders and files of records, each once, in the order of labels and seeds."""
    found = {}
    for source in sources:
        if source.is_dir():
            for path in sorted(source.rglob('run.json')):
                found[path.resolve()] = Run(read_record(path), path.parent)
        else:
            found |= {(source, n): Run(r) for n, r in enumerate(read_records(source))}
    order = backbones([run.record for run in found.values()])
    return sorted(found.values(), key=lambda run: (order.index(run.label), run.seed))


def extra_cost(record: dict) -> tuple[float, float] | None:
    """What a teacher adds to the cost of a run, as parts of the run without one.

    Returns:
        What the paper claims (Section 3.3.4), a third for every iteration with a teacher; and what
        was measured: the seconds of all iterations beside those that they would have taken at the
        pace of the first mini-generation. None unless the teacher begins after the first
        mini-generation (Eqn 4), or if no iteration had one yet.
    """
    algorithm = record['identity']['algorithm']
    lengths = algorithm['generations']
    pace = {g['generation']: g['seconds_per_iter'] for g in record['generations']}
    if (
        not algorithm['teacher_weight']
        or algorithm['taught_after'] != lengths[0]
        or algorithm['fresh_student']
        or len(pace) < 2
    ):
        return None
    iterations = defaultdict(int)
    for entry in record['history']:
        iterations[entry['generation']] += entry['iterations']
    spent = sum(iterations[k] * pace[k] for k in pace)
    return sum(lengths[1:]) / sum(lengths) / 3, spent / (sum(iterations.values()) * pace[1]) - 1


def _finished(runs: Iterable[Run], *tasks: str) -> list[dict]:
    records = (run.record for run in runs)
    return [r for r in records if r['status'] == 'finished' and r['task'] in tasks]


def _epochs(record: dict) -> int:
    """The length of a pretraining run."""
    return sum(record['identity']['algorithm']['generations'])


def _groups(runs: Iterable[Run]) -> list[Group]:
    found: dict[str, Group] = {}
    for run in runs:
        record = run.record
        if record['task'] == 'classification':
            network, data = record['identity']['model']['network'], record['data']['train']
            title = f'{backbone_of(record["identity"])} on {data["count"]} pictures'
            key = json.dumps([network, data])
            found.setdefault(key, Group(title)).runs[run.label].append(run)
    return [*found.values()]


def _figure(figure: Figure, caption: str) -> dict[str, str]:
    return {'caption': caption, 'svg': Markup(as_svg(figure, caption))}


def _transfer(runs: Sequence[Run], labels: Sequence[str]) -> Section:
    title = 'Transfer'
    if not (records := _finished(runs, *TASKS)):
        return Section(title)
    order = [*labels, *(label for label in backbones(records) if label not in labels)]
    try:
        table = Table.from_markdown('Transfer (Table 5)', transfer_table(records, order))
        gains = comparisons(records, order)
    except UserError as error:
        return Section(title, [str(error)])
    gains = {name: gain for name, gain in gains.items() if gain.difference is not None}
    caption = f'Gain over {order[0]} in points, with its 95 % interval where there is one'
    figures = [_figure(_gain_figure(gains), caption)] if gains else []
    return Section(title, (), [table], figures)


def _gain_figure(gains: dict[str, Comparison]) -> Figure:
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.6, 0.9 + 0.45 * len(gains)), layout='constrained')
        axes = figure.subplots()
        for row, gain in enumerate(gains.values()):
            if gain.interval:
                axes.plot(gain.interval, [row, row], color=COLOURS[0], lw=2)
            axes.plot(gain.difference, row, 'o', color=COLOURS[0])
        axes.axvline(0, color='0.5', lw=0.8)
        names = [name.replace(' against', '\nagainst') for name in gains]
        axes.set_yticks(range(len(gains)), names)
        axes.set(ylim=(len(gains) - 0.5, -0.5), xlabel='points')
        axes.grid(axis='x', alpha=0.25, lw=0.5)
        axes.spines[['top', 'right', 'left']].set_visible(False)
        axes.tick_params(axis='y', length=0)
    return figure


def _paper(runs: Sequence[Run]) -> Section:
    records, text, tables = _finished(runs, 'classification'), [], []
    for name, rows in tables_with_records(records):
        groups = {TITLES[name]: records}
        if name == 'errors':  # of runs of the same length; random weights have an epoch alone
            groups = defaultdict(list)
            for record in records:
                length = _epochs(record)
                groups[f'{TITLES[name]}, {length} epoch{"s" * (length > 1)}'].append(record)
        for title, mine in groups.items():
            try:
                tables.append(Table.from_markdown(title, paper_table(name, mine, rows)))
            except UserError as error:
                text.append(f'{title}: {error}')
    return Section('Pretraining', text, tables)


def _curves(runs: Sequence[Run]) -> Section:
    figures = []
    for group in _groups(runs):
        by_length = defaultdict(dict)  # runs of whole generations are longer than the others
        for label, run in group.first.items():
            length = _epochs(run.record)
            if length > 1 and all(epochs for epochs, _ in curves(run.record).values()):
                by_length[length][label] = run
        for length, first in by_length.items():
            figures += _curves_of(f'{group.title}, {length} epochs', first)
    return Section('Curves', (), (), figures)


def _curves_of(title: str, first: dict[str, Run]) -> list[dict[str, str]]:
    shown = dict([*first.items()][: len(COLOURS)])
    seeds = ', '.join(f'{label} with seed {run.seed}' for label, run in shown.items())
    if left_out := [label for label in first if label not in shown]:
        seeds += f'; not drawn: {", ".join(left_out)}'
    records = {label: run.record for label, run in shown.items()}
    caption = f'{title}: errors in training and testing, the last epochs magnified ({seeds})'
    figures = [_figure(error_figure(records, stacked=True), caption)]
    found = {
        label: diagnostics(run.record, read_scalars(run.folder) if run.folder else [])
        for label, run in shown.items()
    }
    for axis in next(iter(found.values())):
        drawn = {label: panels[axis] for label, panels in found.items()}
        if any(x for panel in drawn.values() for x, _ in panel.values()):
            figure = line_figure(drawn, axis, generation_ends(records))
            figures.append(_figure(figure, f'{title}: {axis}'))
    return figures


def _is_timed(record: dict) -> bool:
    """Whether a record tells the cost of all its epochs. A run that started from a snapshot without
    the record beside it does not know what the epochs before had cost."""
    history = record['history']
    return bool(history) and all('iterations' in entry for entry in history)


def _cost(runs: Sequence[Run]) -> Section:
    tables = []
    for group in _groups(runs):
        timed = defaultdict(list)  # runs of one label may have several lengths
        finished = _finished(chain.from_iterable(group.runs.values()), 'classification')
        for record in filter(_is_timed, finished):
            timed[record['label'], len(record['generations']), _epochs(record)].append(record)
        if not timed:
            continue
        most = max(count for _, count, _ in timed)
        header = ['run', 'n', *(f's/iteration, generation {k + 1}' for k in range(most))]
        header += ['iterations', 'seconds', '× first row', "teacher's extra, paper", 'measured']
        header += ['peak memory (MB)']
        rows, base = [], None
        for (label, count, _), records in timed.items():
            pace = [
                fmean(r['generations'][k]['seconds_per_iter'] for r in records)
                for k in range(count)
            ]
            total = _mean_total(records, 'seconds')
            base = base or total
            extras = [extra for record in records if (extra := extra_cost(record))]
            claimed, measured = (
                (f'+{100 * fmean(column):.1f} %' for column in zip(*extras, strict=True))
                if extras
                else (NONE, NONE)
            )
            rows.append(
                [
                    label,
                    str(len(records)),
                    *(f'{value:.3g}' for value in pace),
                    *[NONE] * (most - count),
                    f'{_mean_total(records, "iterations"):.0f}',
                    f'{total:.0f}',
                    f'{total / base:.2f}',
                    claimed,
                    measured.replace('+-', '-'),
                    f'{max(r["peak_memory_mb"] for r in records):.0f}',
                ]
            )
        notes = [
            'Seconds are of training alone and means over the seeds; those of an iteration are the '
            'median of a mini-generation. Runs that shared a machine are not comparable.',
            "The teacher's extra is claimed for its forward pass (Section 3.3.4) and measured "
            'within the run, against the pace of its own first mini-generation.',
        ]
        tables.append(Table(f'{group.title}: cost', header, rows, 1, notes))
    return Section('Cost', (), tables)


def _mean_total(records: Sequence[dict], key: str) -> float:
    return fmean(sum(entry[key] for entry in record['history']) for record in records)


def _settings(runs: Sequence[Run]) -> Section:
    compared = [(group.title, group.first) for group in _groups(runs)]
    compared += _downstream(runs).items()
    tables = [_differences(f'{title}: settings that differ', first) for title, first in compared]
    return Section('Settings', (), [table for table in tables if table])


def _differences(caption: str, first: dict[str, Run]) -> Table | None:
    identities = {label: run.record['identity'] for label, run in first.items()}
    base, *others = identities.values()
    keys = {key for other in others for key in differences(base, other, NOT_SETTINGS)}
    if not keys:
        return None
    rows = [
        [key, *(_shown(_at(identity, key)) for identity in identities.values())]
        for key in sorted(keys)
    ]
    return Table(caption, ['setting', *identities], rows, 1 + len(identities))


def _at(node: Any, key: str) -> Any:
    """The value at a dotted key, None if there is none."""
    for name in key.split('.'):
        if isinstance(node, list) and int(name) < len(node):
            node = node[int(name)]
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node


def _shown(value: Any) -> str:
    if value is None:
        return NONE
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r'\b([0-9a-f]{8})[0-9a-f]{24,}\b', r'\1', text)  # hashes


def _downstream(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Of each downstream config the first run of each backbone."""
    found = {}
    for run in runs:
        if run.record['task'] in TASKS:
            found.setdefault(run.record['config'], {}).setdefault(run.label, run)
    return found


def _pictures(runs: Sequence[Run]) -> Section:
    found, tasks = [], set()
    for config, first in _downstream(runs).items():
        folders = {
            label: run.folder / 'pictures'
            for label, run in first.items()
            if run.folder and (run.folder / 'pictures').is_dir()
        }
        if not folders:
            continue
        common = set.intersection(*({p.name for p in f.glob('*.png')} for f in folders.values()))
        for name in sorted(common)[:PICTURES]:
            halves = {label: _halves(folder / name) for label, folder in folders.items()}
            truth, _ = next(iter(halves.values()))
            pictures = [('truth', truth), *((label, half) for label, (_, half) in halves.items())]
            title = f'{config}, image {Path(name).stem}'
            found.append({'title': title, 'pictures': [_picture(*pair) for pair in pictures]})
            tasks.update(run.record['task'] for run in first.values())
    text = ['What each backbone predicts for the same images, from its first fine-tuning run.']
    if 'detection' in tasks:
        text.append(f'Boxes with a score above {SCORE_THRESHOLD} are drawn.')
    return Section('Pictures', [' '.join(text)] if found else (), (), (), found)


def _halves(path: Path) -> tuple[Image.Image, Image.Image]:
    """Truth and prediction, which PicturesHook writes side by side."""
    image = Image.open(path).convert('RGB')
    middle, height = image.width // 2, image.height
    return image.crop((0, 0, middle, height)), image.crop((middle, 0, 2 * middle, height))


def _picture(caption: str, image: Image.Image) -> dict[str, Any]:
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=85)
    uri = 'data:image/jpeg;base64,' + base64.b64encode(data.getvalue()).decode()
    return {'caption': caption, 'data': uri, 'width': image.width, 'height': image.height}


def _results(runs: Sequence[Run]) -> Section:
    header = ['config', 'label', 'seed', 'status', 'epochs', 'metric', 'last', 'best']
    header += ['snapshots together', 'minutes']
    rows = []
    for run in runs:
        record, metric = run.record, run.record['paper']['metric']
        factor = PERCENT.get(metric, 1.0)
        measured = [g for g in record['generations'] if metric in g.get('last', {})]
        last, best = (
            f'{factor * measured[-1][which][metric]:.2f}' if measured else NONE
            for which in ('last', 'best')
        )
        together = record.get('ensemble', {}).get(metric)
        rows.append(
            [
                record['config'],
                run.label,
                str(run.seed),
                record['status'],
                str(record['history'][-1]['epoch'] if record['history'] else 0),
                metric,
                last,
                best,
                NONE if together is None else f'{together:.2f}',
                f'{record["wall_seconds"] / 60:.1f}',
            ]
        )
    notes = ['Metrics are in percent; last and best are of the last mini-generation.']
    return Section('Runs', (), [Table('All runs', header, rows, 2, notes)])


def _provenance(runs: Sequence[Run]) -> Section:
    header = ['config', 'label', 'seed', 'commit', 'device', 'processes', 'training pictures']
    header += ['test pictures', 'data', 'starts from', 'changed while it ran']
    rows = []
    for run in runs:
        record, data = run.record, run.record['data']
        weights = record['identity'].get('backbone', {}).get('weights_sha256')
        changed = ', '.join(change['key'] for change in record['accepted_changes'])
        rows.append(
            [
                record['config'],
                run.label,
                str(run.seed),
                _shown(record['git_commit']),
                record['device'],
                str(record['world_size']),
                str(data['train']['count']),
                str(data['val']['count']),
                _shown(data['train']['sha256']),
                _shown(weights or record['started_from']),
                changed or NONE,
            ]
        )
    packages = sorted({package for run in runs for package in run.record['versions']})
    versions = [
        [package, ', '.join(sorted({run.record['versions'].get(package, NONE) for run in runs}))]
        for package in packages
    ]
    notes = ['Hashes are shortened: of the commit, of the list of training files, of the weights.']
    tables = [
        Table('Where each run comes from', header, rows, len(header), notes),
        Table('Versions', ['package', 'version'], versions, 2),
    ]
    return Section('Environment and provenance', (), tables)
