"""Statistics of pretraining replicates: their variation, and tests of differences.

The mixed model is: value = method + pretraining (random) + fine-tuning (random). A replicate is one
pretraining of a method, with its own seed; it counts once, as the mean over its fine-tuning seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp, ttest_ind

from pretrain.runs.errors import UserError, number_of
from pretrain.runs.tables import DASH, format_p

LEVEL = 0.05  # significance level; confidence intervals are at 1 - LEVEL
ROUNDING = 1e-9  # in points; smaller differences count as none
# Facts in which the replicates of a label may differ.
_MAY_DIFFER = ('seed', 'weights_sha256', 'source', 'source_sha256', 'top1_error')

# Metric by replicate and fine-tuning seed. The key of a replicate is its pretraining seed, or the
# hash of its weights if the seed is unknown.
Values = Mapping[int | str, Mapping[int, float]]


def replicate(provenance: Mapping[str, Any]) -> int | str:
    """The key of a replicate: the seed in its backbone file, or else the hash of its weights."""
    return provenance.get('seed', provenance['weights_sha256'])


def check_replicates(label: str, provenances: Sequence[Mapping[str, Any]]) -> None:
    """Check by the provenance that the backbones called ``label`` differ only in the pretraining
    seed. Their weights must differ.

    Raises:
        UserError: if other facts differ, or if two backbones have the same seed.
    """
    facts = {key: p.get(key) for p in provenances for key in p if key not in _MAY_DIFFER}
    if differing := sorted(k for k in facts if any(p.get(k) != facts[k] for p in provenances)):
        named = ', '.join(differing).replace(
            'recipe_sha256', 'the settings, data, precision or processes of their pretraining'
        )
        if all(any(k not in p for p in provenances) for k in differing):
            named += ', which some files lack'
        raise UserError(
            f'The replicates of {label} differ in {named}: give one name only to backbones that '
            'differ in nothing but the pretraining seed. (A backbone file has the data if run.json '
            'was beside the checkpoint when it was exported.)'
        )
    keys = [*map(replicate, provenances)]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise UserError(
            f'Two replicates of {label} have the pretraining seed {min(twice)}: keep one of them.'
        )


def spreads(values: Iterable[Sequence[float]]) -> tuple[float | None, float | None]:
    """The standard deviations between pretrainings, and between the fine-tuning runs of one.

    They are the ANOVA estimates of the mixed model: the mean square within replicates gives the
    variance within, and its excess in the mean square between them, at least 0, the one between.

    Args:
        values: for each replicate, the metrics of its fine-tuning runs, at least one.

    Returns:
        Between and within, in the unit of ``values``. Between is None with one replicate. Within
        is None if no replicate was fine-tuned twice; between then contains both variations.

    Example:
        >>> spreads([[70.0, 71.0], [74.0, 75.0]])
        (2.7838821814150108, 0.7071067811865476)
    """
    groups = [np.asarray(group, float) for group in values]
    counts = np.array([len(group) for group in groups])
    means = np.array([group.mean() for group in groups])
    total, free, others = counts.sum(), counts.sum() - len(groups), len(groups) - 1
    square = sum(((g - g.mean()) ** 2).sum() for g in groups) / free if free else None
    within = float(np.sqrt(square)) if free else None
    if not others:
        return None, within
    above = counts @ (means - counts @ means / total) ** 2 / others - (square or 0.0)
    size = (total - counts @ counts / total) / others  # effective runs per replicate
    return float(np.sqrt(max(0.0, above) / size)), within


@dataclass(frozen=True)
class Comparison:
    """A label compared with the baseline.

    Attributes:
        difference: label minus baseline in points; None without a common fine-tuning seed.
        interval: the 95 % confidence interval; None with too few values, or if they do not vary.
        p: the two-sided p-value of the t-test; None when the interval is.
        over: in words, the seeds of both kinds that were compared and the runs left out.
        method: whether both sides have several replicates, so that the test compares the methods;
            otherwise it is over fine-tuning seeds and compares these backbones only.
    """

    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    over: str
    method: bool

    @classmethod
    def of(cls, ours: Values, baseline: Values) -> 'Comparison':
        """Compare the metrics, in percent, over the fine-tuning seeds that all replicates have.

        Replicates with the same pretraining seed are paired, and the others are left out. With
        fewer than two pairs, but several replicates on both sides, the replicates are independent
        samples (Welch's test). With one replicate on a side, the variance between pretrainings is
        unknown, so the test is paired over the fine-tuning seeds instead.
        """
        shared = [key for key in ours if key in baseline]
        if len(shared) < 2 <= min(len(ours), len(baseline)):
            shared = []
        arms = [[arm[key] for key in shared or arm] for arm in (ours, baseline)]
        seeds = set.intersection(*({*runs} for arm in arms for runs in arm)) if all(arms) else set()
        if not seeds:
            return cls(None, None, None, 'no seed in common', False)
        # (replicates, fine-tuning seeds)
        mine, theirs = (
            np.array([[runs[s] for s in sorted(seeds)] for runs in arm]) for arm in arms
        )
        method = min(len(mine), len(theirs)) > 1
        over = number_of(len(seeds), 'fine-tuning seeds')
        if not method:
            samples = [mine.mean(axis=0) - theirs.mean(axis=0)]
        elif shared:
            samples = [(mine - theirs).mean(axis=1)]
            over = f'{len(shared)} pretraining seeds × {over}'
        else:
            samples = [mine.mean(axis=1), theirs.mean(axis=1)]
            over = f'{len(mine)} and {len(theirs)} pretrainings, unpaired (Welch), × {over}'
        total = sum(len(runs) for arm in (ours, baseline) for runs in arm.values())
        if left_out := total - mine.size - theirs.size:
            over += f' that both have, {number_of(left_out, "other runs")} left out'
        difference, interval, p = float(mine.mean() - theirs.mean()), None, None
        if len(samples[0]) > 1 and max(map(np.ptp, samples)) < ROUNDING:
            over += ', with equal differences'
        elif len(samples[0]) > 1:
            paired = len(samples) == 1
            test = ttest_1samp(*samples, 0.0) if paired else ttest_ind(*samples, equal_var=False)
            interval, p = tuple(map(float, test.confidence_interval(1 - LEVEL))), float(test.pvalue)
        return cls(difference, interval, p, over, method)

    def cells(self) -> tuple[str, str]:
        """Two table cells: the difference with its interval, and p."""
        if self.difference is None:
            return DASH, DASH
        interval = ' [{:+.2f}, {:+.2f}]'.format(*self.interval) if self.interval else ''
        return f'{self.difference:+.2f}{interval}', format_p(self.p)

    def verdict(self) -> str:
        """A sentence on what the comparison shows, with the difference if it was tested."""
        if self.difference is None:
            return f'{self.over}: no comparison is possible.'
        difference, p = self.cells()
        if self.p is None:
            difference, meaning = '', ', so no test is possible'
        elif self.p >= LEVEL:
            meaning = f', p = {p}: not distinguishable'
        else:
            word = 'better' if self.difference > 0 else 'worse'
            p = p if p.startswith('<') else f'= {p}'
            meaning = f', p {p}: {word} at the {100 * LEVEL:.0f} % level'
        about = 'the comparison is between these backbones, not between the methods'
        if self.method:
            about = 'the comparison covers the variation of pretraining and fine-tuning'
        elif self.p is not None:
            about += ', since it covers the variation of fine-tuning alone'
        return f'{difference} over {self.over}{meaning}; {about}.'.lstrip()
