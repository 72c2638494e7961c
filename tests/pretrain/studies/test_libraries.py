"""The comparison with other libraries: each part measures what it says; no time is tested."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain.runs.errors import UserError
from pretrain.studies import libraries
from tests.conftest import ROOT

OTHERS = ('torchvision: step', 'timm: step')


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_steps_of_a_small_network() -> None:
    options = ['model.network.depth=18', 'image_size=32', 'batch_size=2']
    rows = libraries.step_rows(ROOT / 'configs/pretrain/r152_bl.py', options, rounds=1)
    values = {row['name']: row['value'] for row in rows}
    best = min(value for name, value in values.items() if name in OTHERS)
    assert values['BL step / best other loop'] == pytest.approx(values['BL: step'] / best)


def test_loader_of_a_few_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='holds no photo'):
        libraries.loader_rows(tmp_path, rounds=1)
    (tmp_path / 'classes.txt').write_text('of the photos')
    for number in range(2):
        Image.effect_noise((320, 280), 60).convert('RGB').save(tmp_path / f'{number}.jpg')
    values = {row['name']: row['value'] for row in libraries.loader_rows(tmp_path, rounds=1)}
    for other in ('torchvision', 'OpenCV'):
        name = f'{other}, crop and mirror'
        assert values[f'ours / {name}'] == pytest.approx(values['ours'] / values[name])
