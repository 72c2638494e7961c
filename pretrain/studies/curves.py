"""Training and testing curves from run records, with a magnified part (Figure 1)."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pretrain.runs.errors import UserError

# Distinguishable without colour vision as well (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLES = {'train': '--', 'test': '-'}


def curves(record: dict) -> dict[str, tuple[list[int], list[float]]]:
    """The epochs and top-1 errors (percent) of a run.

    Returns:
        ``train``: the mean error over the augmented batches of an epoch, measured while the weights
        change. ``test``: the error after the epoch.
    """
    history = record['history']
    train = [(e['epoch'], e['train']['error']) for e in history if 'train' in e]
    test = [(e['epoch'], e['metrics']['top1_error']) for e in history if 'metrics' in e]
    return {
        name: tuple(map(list, zip(*points, strict=True))) if points else ([], [])
        for name, points in (('train', train), ('test', test))
    }


def plot_curves(records: Mapping[str, dict], out: Path, first_epoch: int | None = None) -> None:
    """Draw the curves of several runs by their labels, such as BL and SD in Figure 1: all epochs on
    the left, those from ``first_epoch`` on the right, magnified (default: the last third). The
    suffix of ``out`` chooses the format.

    Raises:
        UserError: if a run, or the magnified part, has no epochs.
    """
    runs = {label: curves(record) for label, record in records.items()}
    for label, run in runs.items():
        if not all(epochs for epochs, _ in run.values()):
            raise UserError(f'The record of {label} has no curve: it must hold whole epochs.')
    last = max(run['test'][0][-1] for run in runs.values())
    start = first_epoch if first_epoch is not None else last - max(1, last // 3)
    if not 0 <= start < last:
        raise UserError(
            f'The magnified part begins at epoch {start} of {last}: choose an earlier epoch.'
        )
    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(9, 3.6), layout='constrained')
        whole, part = figure.subplots(1, 2)
        for axes in (whole, part):
            _draw(axes, runs)
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
        figure.legend(*whole.get_legend_handles_labels(), loc='outside upper center', ncols=6)
        figure.savefig(out, dpi=150)


def _draw(axes: Axes, runs: Mapping[str, dict]) -> None:
    for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
        for name, (epochs, errors) in run.items():
            axes.plot(epochs, errors, STYLES[name], color=colour, label=f'{label}, {name}', lw=1.2)
    axes.set(xlabel='epoch', ylabel='top-1 error (%)')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[['top', 'right']].set_visible(False)
