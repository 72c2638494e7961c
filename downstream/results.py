"""From run.json records to the transfer table (Table 5). Nothing else is read, nothing is typed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import ttest_1samp

from pretrain.runs.errors import UserError
from pretrain.runs.report import SHORTENED, format_p, markdown, mean_std

TASKS = ('detection', 'segmentation')
# mmdet gives mAP as a fraction, mmseg gives mIoU in percent; the tables are in percent.
PERCENT = {'mAP': 100.0, 'mIoU': 1.0}
# The paper's training and test pictures and epochs (Section 4.3).
FULL = {'detection': (5_011, 4_952, 10), 'segmentation': (10_582, 1_449, 50)}
LEVEL = 0.05  # of the tests
ROUNDING = 1e-9  # points: differences that are no further apart are equal
ABOUT_SEEDS = (
    'Differences are paired by seed; p is that of a two-sided paired t-test, not corrected for '
    'the number of comparisons. Seeds vary fine-tuning alone: a backbone is pretrained once, so '
    'that another pretraining may differ by more.'
)


@dataclass(frozen=True)
class Cell:
    """One backbone on one task.

    Attributes:
        values: seed to the metric in percent, after the last epoch.
        paper: the paper's number, if it has one for this config.
    """

    values: dict[int, float]
    paper: float | None


@dataclass(frozen=True)
class Comparison:
    """A backbone against the baseline, over the seeds of fine-tuning that both have.

    Attributes:
        differences: one a shared seed, in points; above 0 where the backbone is better.
        left_out: number of runs of either whose seed the other lacks.
    """

    differences: tuple[float, ...]
    left_out: int

    @classmethod
    def of(cls, cell: Cell, baseline: Cell) -> 'Comparison':
        ours, theirs = cell.values, baseline.values
        shared = sorted(ours.keys() & theirs.keys())
        return cls(tuple(ours[s] - theirs[s] for s in shared), len(ours.keys() ^ theirs.keys()))

    @property
    def p(self) -> float | None:
        """Two-sided p-value of the paired t-test, which is that of the differences against 0; None
        with fewer than two pairs, or where the differences do not vary."""
        if len(self.differences) < 2 or max(self.differences) - min(self.differences) < ROUNDING:
            return None
        return float(ttest_1samp(self.differences, 0.0).pvalue)

    def cells(self) -> tuple[str, str]:
        """The difference, as mean ± standard deviation of the pairs, and p."""
        gain = mean_std(self.differences, '+') if self.differences else '–'
        return gain, format_p(self.p)

    def verdict(self) -> str:
        """What the difference means, in words."""
        pairs = len(self.differences)
        if not pairs:
            return 'no seed in common: no comparison is possible.'
        gain, p = self.cells()
        seeds = 'one seed' if pairs == 1 else f'{pairs} seeds'
        if self.left_out:
            runs = 'run' if self.left_out == 1 else 'runs'
            seeds += f' that both have, {self.left_out} other {runs} left out'
        if self.p is None:
            equal = ', the same with each' if pairs > 1 else ''
            return f'{gain} over {seeds}{equal}: no test is possible.'
        if self.p >= LEVEL:
            meaning = 'not distinguishable'
        else:
            better = statistics.fmean(self.differences) > 0
            meaning = f'{"better" if better else "worse"} at the {100 * LEVEL:.0f} % level'
        equals = '' if p.startswith('<') else '= '
        return f'{gain} over {seeds} (p {equals}{p}): {meaning}.'


def transfer_table(records: Sequence[dict], labels: Sequence[str] = ()) -> str:
    """The table in Markdown: paper, ours (mean ± std over seeds), n, and the gain over the first
    with a paired test; below it a sentence for each comparison. Configs of the same task go by
    their own names.

    Args:
        records: as :func:`pretrain.runs.report.find_records` gives them for ``TASKS``.
        labels: the backbones in the order of the rows, of which the first is the baseline; by
            default those of the records, BL first.

    Raises:
        UserError: if there is no record, if two are of the same backbone, config and seed, or if
            those of a config differ in more than seed and backbone.
    """
    if not records:
        raise UserError('There is no finished downstream run: tools/transfer.py makes them.')
    labels = labels or sorted(
        {r['label'] for r in records}, key=lambda label: (label != 'BL', label)
    )
    configs = sorted({(r['task'], r['config']) for r in records})
    tasks = [task for task, _ in configs]
    header = 'task', 'metric', 'backbone', 'paper', 'ours', 'n', 'delta paper', 'delta ours', 'p'
    rows = []
    notes = []
    for task, config in configs:
        mine = [r for r in records if r['config'] == config]
        name = task if tasks.count(task) == 1 else config
        _one_setting(config, mine)
        metric, full = mine[0]['paper']['metric'], _size(mine[0]) == FULL[task]
        cells = {label: _cell(mine, label, metric, full) for label in labels}
        baseline = cells[labels[0]]
        shortened = '' if full or not mine[0]['paper'].keys() & {*labels} else SHORTENED
        notes.append(shortened + _note(config, mine))
        for label, cell in cells.items():
            deltas = '', '', ''
            if label != labels[0]:
                comparison = Comparison.of(cell, baseline)
                deltas = _delta(cell.paper, baseline.paper), *comparison.cells()
                notes.append(f'{name}, {label} against {labels[0]}: {comparison.verdict()}')
            rows.append(
                (
                    name,
                    f'{metric} (%)',
                    label,
                    '–' if cell.paper is None else f'{cell.paper:.2f}',
                    mean_std(list(cell.values.values())),
                    str(len(cell.values)),
                    *deltas,
                )
            )
    if len(labels) > 1:
        notes.append(ABOUT_SEEDS)
    return markdown(header, rows, notes, texts=3)


def _one_setting(config: str, records: Sequence[dict]) -> None:
    """Make sure that the runs of a config may be compared. Stem, stride and preprocessing are their
    backbones' own."""
    apart = 'seed', 'backbone', 'model'
    settings = [
        {key: value for key, value in r['identity'].items() if key not in apart}
        | {'data': r['data'], 'epochs': r['history'][-1]['epoch']}
        for r in records
    ]
    for other in settings[1:]:
        if differing := [k for k in settings[0] | other if settings[0].get(k) != other.get(k)]:
            raise UserError(
                f'The records of {config} differ in {", ".join(differing)}, and do not belong in '
                'one table: name the folder of one set of runs.'
            )


def _size(record: dict) -> tuple[int, int, int]:
    """Training and test pictures and epochs."""
    data = record['data']
    return data['train']['count'], data['val']['count'], record['history'][-1]['epoch']


def _cell(records: Sequence[dict], label: str, metric: str, full: bool) -> Cell:
    mine = [r for r in records if r['label'] == label]
    seeds = [r['identity']['seed'] for r in mine]
    if len(set(seeds)) != len(seeds):
        raise UserError(
            f'Two records are of {label}, {mine[0]["config"]} and the same seed: keep one of them.'
        )
    values = [r['generations'][-1]['last'][metric] * PERCENT[metric] for r in mine]
    paper = records[0]['paper'].get(label) if full else None
    return Cell(dict(zip(seeds, values, strict=True)), paper)


def _delta(value: float | None, base: float | None) -> str:
    return '–' if value is None or base is None else f'{value - base:+.2f}'


def _note(config: str, records: Sequence[dict]) -> str:
    train, val, epochs = _size(records[0])
    devices = ', '.join(sorted({r['device'] for r in records}))
    return f'{config}: {train} training and {val} test pictures, {epochs} epochs, on {devices}.'
