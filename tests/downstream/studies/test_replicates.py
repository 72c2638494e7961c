"""Spreads and t-tests against the mixed model, written out as matrices and sums of squares.

y[arm, pretraining, fine-tuning] = arm + pretraining + arm x pretraining + fine-tuning, where all
terms but the first are random. Everything is float64.
"""

import math

import numpy as np
import pytest
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from downstream.studies.replicates import Comparison, check_replicates, replicate, spreads
from pretrain.runs.errors import UserError


def measurements(pretrainings: int, tunings: int, seed: int = 0) -> np.ndarray:
    """(2, pretrainings, tunings) values: pretrainings with the same seed share an effect."""
    rng = np.random.default_rng(seed)
    arm = np.array([70.0, 71.5])[:, None, None]
    pretraining = rng.normal(0, 2.0, (1, pretrainings, 1))
    interaction = rng.normal(0, 0.8, (2, pretrainings, 1))
    return arm + pretraining + interaction + rng.normal(0, 0.5, (2, pretrainings, tunings))


def as_values(arm: np.ndarray, first: int = 0) -> dict[int, dict[int, float]]:
    """``Values`` of an arm; the pretraining seeds start at ``first``."""
    return {first + p: dict(enumerate(runs)) for p, runs in enumerate(arm.tolist())}


@pytest.mark.parametrize('counts', [[3, 3, 3], [2, 2], [4, 2, 3, 1], [1, 5]])
def test_spreads_are_the_variance_components(counts: list[int]) -> None:
    """With them, the mean squares equal their expectations, traces of the model's covariance."""
    rng = np.random.default_rng(len(counts))
    groups = [rng.normal(70 + 3 * k, 1.0, count) for k, count in enumerate(counts)]
    y = np.concatenate(groups)
    belongs = np.repeat(np.eye(len(counts)), counts, axis=0)  # (runs, replicates)
    to_means = belongs @ np.diag(1 / np.array(counts)) @ belongs.T
    squares, expected = [], []
    for form, free in (
        (to_means - np.full((len(y), len(y)), 1 / len(y)), len(counts) - 1),
        (np.eye(len(y)) - to_means, len(y) - len(counts)),
    ):
        squares.append(y @ form @ y / free)
        expected.append([np.trace(form @ belongs @ belongs.T) / free, np.trace(form) / free])
    between, within = np.sqrt(np.linalg.solve(expected, squares))
    assert spreads(groups) == pytest.approx((between, within), rel=1e-9)


def test_spreads_at_their_limits() -> None:
    # Both means are 1.5: between is 0, where the estimate of its variance is negative.
    assert spreads([[1.0, 2.0], [2.0, 1.0]]) == (0.0, pytest.approx(math.sqrt(0.5)))
    assert spreads([[1.0, 2.0, 3.0]]) == (None, pytest.approx(1.0))
    assert spreads([[1.0], [3.0]]) == (pytest.approx(math.sqrt(2.0)), None)
    assert spreads([[1.0]]) == (None, None)


@pytest.mark.parametrize(('pretrainings', 'tunings'), [(3, 3), (2, 4), (5, 1)])
def test_paired_test_is_the_mixed_models(pretrainings: int, tunings: int) -> None:
    """It is the F-test of the arms against arm x pretraining in a balanced design."""
    y = measurements(pretrainings, tunings)
    grand, arms, blocks, cells = y.mean(), y.mean((1, 2)), y.mean((0, 2)), y.mean(2)
    of_arms = sum(pretrainings * tunings * (arms[a] - grand) ** 2 for a in (0, 1))
    interaction = sum(
        tunings * (cells[a, p] - arms[a] - blocks[p] + grand) ** 2
        for a in (0, 1)
        for p in range(pretrainings)
    ) / (pretrainings - 1)
    p = f_distribution.sf(of_arms / interaction, 1, pretrainings - 1)
    margin = t_distribution.ppf(0.975, pretrainings - 1) * math.sqrt(
        2 * interaction / (pretrainings * tunings)
    )
    result = Comparison.of(as_values(y[1]), as_values(y[0]))
    difference = arms[1] - arms[0]
    assert result.method
    assert result.difference == pytest.approx(difference, rel=1e-12)
    assert result.p == pytest.approx(p, rel=1e-9)
    assert result.interval == pytest.approx((difference - margin, difference + margin), rel=1e-9)
    tunings = 'seed' if tunings == 1 else 'seeds'
    assert f'over {pretrainings} pretraining seeds × {y.shape[2]} fine-tuning {tunings}, p = ' in (
        result.verdict()
    )
    said = 'the comparison covers the variation of pretraining and fine-tuning.'
    assert result.verdict().endswith(said)


def test_replicates_are_paired_by_their_seeds_in_any_order() -> None:
    y = measurements(4, 3)
    ours, baseline = map(as_values, (y[1], y[0]))
    shuffled = {p: {f: ours[p][f] for f in (2, 0, 1)} for p in (2, 0, 3, 1)}
    first, second = (Comparison.of(arm, baseline) for arm in (ours, shuffled))
    assert second.p == pytest.approx(first.p, rel=1e-9)
    assert second.interval == pytest.approx(first.interval, rel=1e-9)


def test_one_replicate_is_tested_over_fine_tuning_alone() -> None:
    y = measurements(1, 4)
    differences = y[1, 0] - y[0, 0]
    error = math.sqrt(sum((differences - differences.mean()) ** 2) / 3 / 4)
    result = Comparison.of(as_values(y[1]), as_values(y[0]))
    assert result.p == pytest.approx(2 * t_distribution.sf(abs(differences.mean()) / error, 3))
    assert not result.method
    assert 'over 4 fine-tuning seeds, p' in result.verdict()
    assert result.verdict().endswith(
        'is between these backbones, not between the methods, since it covers the variation of '
        'fine-tuning alone.'
    )


def test_replicates_without_a_common_seed_are_not_paired() -> None:
    """They get Welch's test: the arms may differ in their number of replicates and variance."""
    baseline, ours = measurements(3, 2)[0], 3 * measurements(5, 2, seed=1)[1]
    variances = [arm.mean(1).var(ddof=1) / len(arm) for arm in (ours, baseline)]
    free = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 2)
    difference, error = ours.mean() - baseline.mean(), math.sqrt(sum(variances))
    margin = error * t_distribution.ppf(0.975, free)
    result = Comparison.of(as_values(ours, first=3), as_values(baseline))
    assert result.method
    assert result.p == pytest.approx(2 * t_distribution.sf(abs(difference) / error, free))
    assert result.interval == pytest.approx((difference - margin, difference + margin))
    assert (
        'over 5 and 3 pretrainings, unpaired (Welch), × 2 fine-tuning seeds, p' in result.verdict()
    )


def test_replicates_with_one_common_seed_are_not_paired() -> None:
    """A single pair has no variance, and the other replicates would be left out."""
    y = measurements(3, 2)
    result = Comparison.of(as_values(y[1], first=2), as_values(y[0]))
    assert result == Comparison.of(as_values(y[1], first=7), as_values(y[0]))
    assert result.method


def test_one_replicate_against_several() -> None:
    """It is paired with the one of its seed, or compared with the mean; neither tests methods."""
    y = measurements(3, 3)
    result = Comparison.of(as_values(y[1]), {1: as_values(y[0])[1]})
    assert (result.difference, result.method) == (pytest.approx((y[1, 1] - y[0, 1]).mean()), False)
    assert 'over 3 fine-tuning seeds that both have, 6 other runs left out, p' in result.verdict()
    result = Comparison.of(as_values(y[1]), as_values(y[0, :1], first=7))
    assert (result.difference, result.method) == (
        pytest.approx(y[1].mean() - y[0, 0].mean()),
        False,
    )
    assert 'left out' not in result.verdict()


def test_what_one_arm_lacks_is_left_out_and_said() -> None:
    y = measurements(3, 2)
    ours, baseline = as_values(y[1]), as_values(y[0])
    expected = Comparison.of(as_values(y[1, :2]), as_values(y[0, :2]))
    del ours[2]
    result = Comparison.of(ours, baseline)
    assert (result.difference, result.p) == (expected.difference, expected.p)
    said = '2 pretraining seeds × 2 fine-tuning seeds that both have, 2 other runs left out, p'
    assert said in result.verdict()
    del baseline[0][1]  # all replicates must then have the same fine-tuning seeds
    result = Comparison.of(ours, baseline)
    assert result.difference == pytest.approx((y[1, :2, 0] - y[0, :2, 0]).mean())
    said = '2 pretraining seeds × 1 fine-tuning seed that both have, 5 other runs left out, p'
    assert said in result.verdict()


PROVENANCE = {'depth': 18, 'algorithm': {'generations': [6]}, 'data': {'count': 9}, 'seed': 0}
PROVENANCE |= {'weights_sha256': 'a', 'top1_error': 30.0, 'source': 'x.pth'}


def test_replicates_are_of_one_pretraining() -> None:
    own = {'seed': 1, 'weights_sha256': 'b', 'top1_error': 31.0, 'source': 'y.pth'}
    check_replicates('BL', [PROVENANCE, PROVENANCE | own])
    for other in (
        {'depth': 50},
        {'algorithm': {'generations': [3, 3]}},
        {'data': {'count': 8}},
        {'batch_size': 4},  # the other lacks this fact
    ):
        (fact,) = other
        if fact == 'batch_size':
            fact += ', which some files lack'
        for pair in (
            (PROVENANCE, PROVENANCE | own | other),
            (PROVENANCE | own | other, PROVENANCE),
        ):
            with pytest.raises(UserError, match=f'replicates of BL differ in {fact}: give'):
                check_replicates('BL', pair)
    recipes = [PROVENANCE | {'recipe_sha256': 'a'}, PROVENANCE | own | {'recipe_sha256': 'b'}]
    with pytest.raises(UserError, match='BL differ in the settings, data, precision or processes'):
        check_replicates('BL', recipes)
    with pytest.raises(UserError, match='replicates of BL have the pretraining seed 0'):
        check_replicates('BL', [PROVENANCE, PROVENANCE | own | {'seed': 0}])


def test_a_replicate_goes_by_its_seed_or_else_by_its_weights() -> None:
    foreign = {'weights_sha256': 'b'}
    assert [replicate(PROVENANCE), replicate(foreign)] == [0, 'b']
    check_replicates('TV', [foreign, {'weights_sha256': 'c'}])
