import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.datasets.shrink import shrink_folder, shrink_image
from pretrain.runs.errors import UserError


def encode(width: int, height: int, mode: str = 'RGB', format: str = 'JPEG') -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'root'
    for more, split in enumerate(('train', 'val')):
        (root / split / 'n01').mkdir(parents=True)
        (root / split / 'n01/large.JPEG').write_bytes(encode(200 + more, 100))
        (root / split / 'n01/small.JPEG').write_bytes(encode(60 + more, 40))
    return root


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_shorter_side_is_shrunk(mode: str) -> None:
    shrunk = Image.open(io.BytesIO(shrink_image(encode(300, 201, mode), 50)))
    assert (shrunk.format, shrunk.mode, shrunk.size) == ('JPEG', 'RGB', (75, 50))
    original = Image.open(io.BytesIO(encode(300, 201, mode))).convert('RGB').resize((75, 50))
    difference = np.abs(np.asarray(shrunk, float) - np.asarray(original, float))
    assert difference.mean() < 3  # of 255: JPEG at quality 90, and another filter


def test_small_images_keep_their_bytes_or_their_size() -> None:
    jpeg = encode(60, 50)
    assert shrink_image(jpeg, 50) is jpeg
    converted = Image.open(io.BytesIO(shrink_image(encode(60, 50, format='PNG'), 50)))
    assert (converted.format, converted.size) == ('JPEG', (60, 50))


def test_folder_is_copied_once(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'out'
    shrink_folder(root, out, 50)
    assert '2 copied, 2 re-encoded' in capsys.readouterr().out
    assert Image.open(out / 'train/n01/large.JPEG').size == (100, 50)
    assert (out / 'val/n01/small.JPEG').read_bytes() == encode(61, 40)
    (out / 'train/n01/large.JPEG').unlink()
    shrink_folder(root, out, 50)
    assert '3 already there, 1 re-encoded' in capsys.readouterr().out
    assert Image.open(root / 'train/n01/large.JPEG').size == (200, 100)


def test_refusals(root: Path, tmp_path: Path) -> None:
    for out in (root, root / 'small', tmp_path):
        with pytest.raises(UserError, match='overlap'):
            shrink_folder(root, out, 50)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/file').write_text('mine')
    with pytest.raises(UserError, match='other contents'):
        shrink_folder(root, tmp_path / 'other', 50)
    (root / 'val/n01/large.JPEG').write_bytes(encode(200, 100)[:200])
    with pytest.raises(UserError, match=r'1 truncated \(val/n01/large.JPEG\)'):
        shrink_folder(root, tmp_path / 'out', 50)
    assert [path.name for path in (tmp_path / 'other').iterdir()] == ['file']
    assert not (tmp_path / 'out').exists()
