"""From run.json records to the transfer table (Table 5). Nothing else is read, nothing is typed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.errors import UserError
from pretrain.tables import markdown, mean_std

TASKS = ('detection', 'segmentation')
# mmdet gives mAP as a fraction, mmseg gives mIoU in percent; the tables are in percent.
PERCENT = {'mAP': 100.0, 'mIoU': 1.0}


@dataclass(frozen=True)
class Cell:
    """One backbone on one task.

    Attributes:
        values: the metric of each seed in percent, after the last epoch.
        paper: the paper's number, if it has one for this config.
    """

    values: tuple[float, ...]
    paper: float | None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None


def transfer_table(records: Sequence[dict], labels: Sequence[str] = ()) -> str:
    """The table in Markdown: paper, ours (mean ± std over seeds), n, and the gain over the first.

    Args:
        records: as :func:`pretrain.tables.find_records` gives them for ``TASKS``.
        labels: the backbones in the order of the rows, of which the first is the baseline; by
            default those of the records, BL first.

    Raises:
        UserError: if there is no record, or two of the same backbone, config and seed.
    """
    if not records:
        raise UserError('There is no finished downstream run: tools/transfer.py makes them.')
    labels = labels or sorted(
        {r['label'] for r in records}, key=lambda label: (label != 'BL', label)
    )
    configs = sorted({(r['task'], r['config']) for r in records})
    header = ('task', 'metric', 'backbone', 'paper', 'ours', 'n', 'delta paper', 'delta ours')
    rows = []
    notes = []
    for task, config in configs:
        mine = [r for r in records if r['config'] == config]
        metric = mine[0]['paper']['metric']
        cells = {label: _cell(mine, label, metric) for label in labels}
        first = cells[labels[0]]
        for label, cell in cells.items():
            rows.append(
                (
                    task,
                    f'{metric} (%)',
                    label,
                    '–' if cell.paper is None else f'{cell.paper:.2f}',
                    mean_std(cell.values),
                    str(len(cell.values)),
                    '' if label == labels[0] else _delta(cell.paper, first.paper),
                    '' if label == labels[0] else _delta(cell.mean, first.mean),
                )
            )
        notes.append(_note(config, mine))
    return markdown(header, rows, notes, texts=3)


def _cell(records: Sequence[dict], label: str, metric: str) -> Cell:
    mine = [r for r in records if r['label'] == label]
    seeds = [r['identity']['seed'] for r in mine]
    if len(set(seeds)) != len(seeds):
        raise UserError(
            f'Two records are of {label}, {mine[0]["config"]} and the same seed: keep one of them.'
        )
    values = tuple(r['generations'][-1]['last'][metric] * PERCENT[metric] for r in mine)
    return Cell(values, records[0]['paper'].get(label))


def _delta(value: float | None, base: float | None) -> str:
    return '–' if value is None or base is None else f'{value - base:+.2f}'


def _note(config: str, records: Sequence[dict]) -> str:
    counts = {tuple(r['data'][split]['count'] for split in ('train', 'val')) for r in records}
    train, val = ' / '.join(str(c[0]) for c in counts), ' / '.join(str(c[1]) for c in counts)
    epochs = sorted({r['history'][-1]['epoch'] for r in records})
    devices = ', '.join(sorted({r['device'] for r in records}))
    return (
        f'{config}: {train} training and {val} test pictures, '
        f'{" or ".join(map(str, epochs))} epochs, on {devices}.'
    )
