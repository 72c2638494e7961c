from pathlib import Path

import matplotlib.image
import pytest

from pretrain.runs.errors import UserError
from pretrain.studies.curves import curves, plot_curves


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
def test_picture_shows_both_runs(first_epoch: int | None, tmp_path: Path) -> None:
    plot_curves({'BL': record(0.0), 'SD': record(-2.0)}, tmp_path / 'curves.png', first_epoch)
    image = matplotlib.image.imread(tmp_path / 'curves.png')
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        difference = abs(image[..., :3] - [c / 255 for c in colour]).max(axis=2)
        for half in (difference[:, :675], difference[:, 675:]):  # the whole and the part
            assert (half < 0.02).sum() > 50


def test_runs_without_a_curve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='BL has no curve'):
        plot_curves({'BL': {'history': []}}, tmp_path / 'x.png')
    with pytest.raises(UserError, match='begins at epoch 9 of 9'):
        plot_curves({'BL': record(0.0)}, tmp_path / 'x.png', first_epoch=9)
    assert not (tmp_path / 'x.png').exists()
