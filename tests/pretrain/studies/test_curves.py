import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pretrain.runs.errors import UserError
from pretrain.studies.curves import (
    as_svg,
    curves,
    diagnostics,
    error_figure,
    generation_ends,
    line_figure,
    read_scalars,
)


def record(shift: float) -> dict:
    history = [
        {
            'epoch': e,
            'generation': 1 if e < 6 else 2,
            'iterations': 10,
            'train': {'error': 80.0 / e, 'entropy': 2.0, 'agreement': 50.0 + e},
            'metrics': {'top1_error': 90.0 / e + shift},
        }
        for e in range(1, 10)
    ]
    del history[2]['metrics']  # not every epoch is validated
    return {'history': history}


def test_points_are_the_records() -> None:
    points = curves(record(1.0))
    assert points['train'] == (list(range(1, 10)), [80.0 / e for e in range(1, 10)])
    validated = [1, 2, 4, 5, 6, 7, 8, 9]
    assert points['test'] == (validated, [90.0 / e + 1.0 for e in validated])


@pytest.mark.parametrize('first_epoch', [None, 4])
def test_figure_shows_both_runs(first_epoch: int | None, tmp_path: Path) -> None:
    figure = error_figure({'BL': record(0.0), 'SD': record(-2.0)}, first_epoch)
    figure.savefig(tmp_path / 'curves.png', dpi=150)
    image = matplotlib.image.imread(tmp_path / 'curves.png')
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        difference = abs(image[..., :3] - [c / 255 for c in colour]).max(axis=2)
        for half in (difference[:, :675], difference[:, 675:]):  # the whole and the part
            assert (half < 0.02).sum() > 50


@pytest.mark.parametrize('runs', [1, 2, 3, 5, 7])
def test_legend_keeps_the_curves_of_a_run_together(runs: int) -> None:
    """And fits into the figure."""
    names = ['_SD', 'a$_$b', *(f'run {number}' for number in range(2, runs))][:runs]
    figure = error_figure({name: record(0.0) for name in names})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    places = {
        text.get_text().strip().replace('\\', ''): text.get_window_extent()
        for text in legend.get_texts()
    }
    for name in names:
        train, test = places[f'{name}, train'], places[f'{name}, test']
        assert train.x0 == test.x0 or train.y0 == test.y0
    assert figure.bbox.x0 <= legend.get_window_extent().x0
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_each_number_of_points_can_be_seen() -> None:
    """Such as the one epoch with a teacher of a short run."""
    for points in range(1, 4):
        run = {'agreement': ([*range(points)], [50.0] * points)}
        figure = line_figure({'SD': run}, 'agreement', [])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.asarray(canvas.buffer_rgba())[..., :3] / 255
        (axes,) = figure.axes
        left, bottom, right, top = map(int, axes.get_window_extent().extents)
        inside = image[-top:-bottom, left:right]
        coloured = inside.max(axis=2) - inside.min(axis=2) > 0.2  # the grid is grey
        assert coloured.sum() > 10


def test_runs_without_a_curve() -> None:
    with pytest.raises(UserError, match='BL has no curve'):
        error_figure({'BL': {'history': []}})
    with pytest.raises(UserError, match='begins at epoch 9 of 9'):
        error_figure({'BL': record(0.0)}, first_epoch=9)


def test_scalars_of_a_resumed_run(tmp_path: Path) -> None:
    """What was trained again counts as it was the last time; a line that is being written does not
    count yet, and neither does a validation."""
    sessions = {
        '20260101_000000': [(10, 3.0), (20, 2.0)],
        '20260102_000000': [(20, 2.5), (30, 1.0)],
    }
    for session, entries in sessions.items():
        path = tmp_path / session / 'vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        lines = [json.dumps({'iter': step, 'loss': loss}) for step, loss in entries]
        path.write_text(
            '\n'.join([*lines, json.dumps({'top1_error': 9.0, 'step': 1}), '{"iter": 4'])
        )
    scalars = read_scalars(tmp_path)
    assert [(entry['iter'], entry['loss']) for entry in scalars] == [
        (10, 3.0),
        (20, 2.5),
        (30, 1.0),
    ]
    run = record(0.0)
    del run['history'][0]['iterations']  # of an epoch that a run without a record has trained
    panels = diagnostics(run, scalars)
    assert panels['loss']['loss'] == ([1.0, 2.0, 3.0], [3.0, 2.5, 1.0])  # 10 iterations an epoch
    assert panels['entropy (nats)'] == {
        'student': (list(range(1, 10)), [2.0] * 9),
        'teacher': ([], []),
    }
    run['history'] = []  # within the first epoch, whose length is not known
    assert diagnostics(run, scalars)['loss']['loss'] == ([], [])


def test_ends_of_mini_generations() -> None:
    records = {'BL': record(0.0), 'SD': record(0.0)}
    assert generation_ends(records) == [5]
    for entry in records['BL']['history']:
        entry['generation'] = 1
    assert generation_ends({'BL': records['BL']}) == []


def test_svg_takes_the_ink_of_its_page() -> None:
    svg = as_svg(error_figure({'BL': record(0.0)}, stacked=True), 'A & B')
    assert svg.startswith('<svg role="img" aria-label="A &amp; B" ')
    assert 'currentColor' in svg
    assert '#000000' not in svg
    for text in ('BL, train', 'BL, test', 'a mini-generation ends', 'top-1 error (%)'):
        assert f'>{text}</text>' in svg
