"""Training curves from run records and from the scalars that runs log (Figure 1)."""

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pretrain.runs.errors import UserError

# Also distinguishable for colour-blind readers (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#999999')
# Other curves are solid.
STYLES = {'train': '--', 'cross-entropy': '--', 'teacher': '--', 'KL divergence': ':'}
FONT = {'font.size': 9}

Points = tuple[list[float], list[float]]  # epochs and values
Runs = Mapping[str, Mapping[str, Points]]  # by the label of a run and the name of a curve


def curves(record: dict) -> dict[str, Points]:
    """The epochs and top-1 errors (percent) of a run: ``train``, the mean over an epoch's batches
    while the weights change, and ``test``, measured after the epoch."""
    train = ((e['epoch'], e['train']['error']) for e in record['history'] if 'train' in e)
    test = ((e['epoch'], e['metrics']['top1_error']) for e in record['history'] if 'metrics' in e)
    return {'train': _points(train), 'test': _points(test)}


def diagnostics(record: dict, scalars: Sequence[dict]) -> dict[str, dict[str, Points]]:
    """Further curves of a run, by the label of their y axis.

    Args:
        record: the run's record.
        scalars: from :func:`read_scalars`; if empty, the losses and the learning rate are empty.
    """
    epochs = record['history']
    # Entries of epochs that another run trained may lack them.
    iterations = next((e['iterations'] for e in epochs if 'iterations' in e), None)

    def logged(key: str) -> Points:
        known = scalars if iterations else ()  # not within the first epoch
        return _points((s['iter'] / iterations, s[key]) for s in known if key in s)

    def measured(key: str) -> Points:
        return _points((e['epoch'], e['train'][key]) for e in epochs if key in e.get('train', {}))

    losses = {'loss': 'loss', 'cross-entropy': 'cross_entropy', 'KL divergence': 'kl'}
    return {
        'loss': {name: logged(key) for name, key in losses.items()},
        'entropy (nats)': {'student': measured('entropy'), 'teacher': measured('teacher_entropy')},
        'agreement with the teacher (%)': {'agreement': measured('agreement')},
        'learning rate': {'learning rate': logged('lr')},
    }


def read_scalars(work_dir: Path) -> list[dict]:
    """The scalars that a run logged in training, in the order of its iterations.

    Each session wrote its own file. If two files have the same iteration, the later one counts.
    """
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = path.read_text().split('\n')[:-1]  # the last line may be incomplete
        found |= {entry['iter']: entry for entry in map(json.loads, lines) if 'iter' in entry}
    return [found[iteration] for iteration in sorted(found)]


def error_figure(
    records: Mapping[str, dict], first_epoch: int | None = None, stacked: bool = False
) -> Figure:
    """The error curves of up to seven runs, by label, as in Figure 1: all epochs on the left, and
    on the right (``stacked``: below) the epochs from ``first_epoch`` on, by default the last third.

    Raises:
        UserError: if a run lacks a curve, or the magnified part has no epochs.
    """
    runs = {label: curves(record) for label, record in records.items()}
    for label, run in runs.items():
        if not all(epochs for epochs, _ in run.values()):
            raise UserError(f'The record of {label} has no curve: finish an epoch first.')
    last = max(run['test'][0][-1] for run in runs.values())
    start = first_epoch if first_epoch is not None else last - max(1, last // 3)
    if not 0 <= start < last:
        raise UserError(
            f'The magnified part begins at epoch {start} of {last}: choose an earlier epoch.'
        )
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.6, 5) if stacked else (9, 3.6), layout='constrained')
        whole, part = figure.subplots(*((2, 1) if stacked else (1, 2)))
        for axes in (whole, part):
            _draw(axes, runs, 'top-1 error (%)', generation_ends(records))
        shown = [
            error
            for run in runs.values()
            for epochs, errors in run.values()
            for epoch, error in zip(epochs, errors, strict=True)
            if epoch >= start
        ]
        margin = 0.05 * (max(shown) - min(shown)) or 1.0
        part.set_xlim(start, last)
        part.set_ylim(min(shown) - margin, max(shown) + margin)
        whole.indicate_inset_zoom(part, edgecolor='0.4')
        _add_legend(figure, whole, in_rows=stacked)
    return figure


def line_figure(runs: Runs, ylabel: str, ends: Sequence[int]) -> Figure:
    """Curves over the epochs, with lines at the ``ends`` of mini-generations. A run without points
    still takes a colour, so that each run has the same one in all figures."""
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.6, 2.4), layout='constrained')
        axes = figure.subplots()
        _draw(axes, runs, ylabel, ends)
        _add_legend(figure, axes, in_rows=True)
    return figure


def generation_ends(records: Mapping[str, dict]) -> list[int]:
    """The epochs after which a mini-generation of any of the runs ends and another begins."""
    return sorted(
        {
            entry['epoch']
            for record in records.values()
            for entry, following in pairwise(record['history'])
            if entry['generation'] != following['generation']
        }
    )


def as_svg(figure: Figure, title: str) -> str:
    """A figure as an ``<svg>`` element for an HTML page, with black replaced by the page's text
    colour. Screen readers read its ``title``, which must be unique on the page."""
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title}):
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    svg = text.getvalue()
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.DOTALL)
    used = set(re.findall(r'#([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else '', svg)
    svg = svg.replace('#000000', 'currentColor')
    return svg.replace('<svg ', f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _points(pairs: Iterable[tuple[float, float]]) -> Points:
    pairs = list(pairs)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _draw(axes: Axes, runs: Runs, ylabel: str, ends: Sequence[int]) -> None:
    for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
        for name, (epochs, values) in run.items():
            if epochs:
                # matplotlib hides labels that begin with _ and reads $ as the begin of a formula.
                text = ' ' * label.startswith('_') + label.replace('$', r'\$')
                text = text if name == ylabel else f'{text}, {name}'
                style = STYLES.get(name, '-') if len(epochs) > 1 else 'o'  # a line needs two points
                axes.plot(epochs, values, style, color=colour, label=text, lw=1.2)
    for number, end in enumerate(ends):
        label = '' if number else 'a mini-generation ends'
        axes.axvline(end, color='0.5', lw=0.8, ls=(0, (1, 2)), label=label)
    axes.set(xlabel='epoch', ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[['top', 'right']].set_visible(False)


def _add_legend(figure: Figure, axes: Axes, in_rows: bool) -> None:
    """Add a legend above the axes; with ``in_rows``, two entries per row, and the figure grows.
    Otherwise a column has one entry, or an even number, which keeps a run's curves together."""
    handles, names = axes.get_legend_handles_labels()
    rows = 1 if len(names) <= 6 else 2 * math.ceil(len(names) / 12)
    columns = 2 if in_rows else math.ceil(len(names) / rows)
    figure.legend(handles, names, loc='outside upper center', ncols=columns, frameon=False)
    if in_rows:
        figure.set_figheight(figure.get_figheight() + 0.17 * ((len(names) + 1) // 2))
