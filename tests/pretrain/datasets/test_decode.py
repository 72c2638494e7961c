import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pretrain.datasets.decode import Box, EncodedImage, centre_box, random_box
from pretrain.datasets.image_checks import UNUSABLE, check_image
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import torch_seed

AREA = (0.08, 1.0)


def smooth(width: int, height: int) -> Image.Image:
    """An image without fine detail, so that decoders and resizers may differ by rounding alone."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(60, 200, (3, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def pil_crop(path: Path, box: Box, size: int) -> torch.Tensor:
    """The reference: PIL decodes everything and resizes with its own antialiasing."""
    image = Image.open(path).convert('RGB')
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = image.crop(corners).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize(
    'box',
    [Box(0, 0, 700, 900), Box(100, 50, 500, 333), Box(301, 77, 64, 91), Box(650, 800, 50, 100)],
)
def test_crops_are_pils(box: Box, suffix: str, tmp_path: Path) -> None:
    """Whatever libjpeg's scale is: an eighth, a quarter, a half or the whole."""
    path = tmp_path / f'image{suffix}'
    smooth(900, 700).save(path, quality=95)
    image = EncodedImage(path)
    assert (image.height, image.width) == (700, 900)
    for size in (32, 56, 224):
        crop = image.crop(box, size)
        assert crop.shape == (3, size, size)
        assert crop.dtype == torch.uint8
        difference = (crop.float() - pil_crop(path, box, size).float()).abs()
        # Of 255; the edges of a box move by at most half a pixel of the scaled image.
        assert difference.mean() < 1
        assert difference.max() < 8


def test_less_is_decoded_for_a_large_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    shapes = []
    decode = simplejpeg.decode_jpeg

    def spy(*args: object, **kwargs: object) -> np.ndarray:
        pixels = decode(*args, **kwargs)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, 'decode_jpeg', spy)
    smooth(901, 703).save(tmp_path / 'image.jpg')
    image = EncodedImage(tmp_path / 'image.jpg')
    for side, size in ((448, 224), (447, 224), (703, 80), (256, 32), (100, 224)):
        image.crop(Box(0, 0, side, side), size)
    assert shapes == [(352, 451), (703, 901), (88, 113), (88, 113), (703, 901)]


def test_no_scale_reaches_beyond_the_image(tmp_path: Path) -> None:
    """A white image stays white to its last pixel: nothing is padded with black."""
    for width, height in ((97, 97), (130, 101), (65, 200)):
        path = tmp_path / f'{width}.jpg'
        Image.new('RGB', (width, height), 'white').save(path)
        image = EncodedImage(path)
        for top in range(0, 24):
            box = Box(top, top + 1, height - top, width - top - 1)
            assert image.crop(box, 8).min() > 250


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'P', 'RGBA', '1'])
def test_other_colours_become_rgb(mode: str, tmp_path: Path) -> None:
    suffix = 'jpg' if mode in ('L', 'CMYK') else 'png'
    path = tmp_path / f'image.{suffix}'
    smooth(90, 70).convert(mode).save(path)
    crop = EncodedImage(path).crop(Box(0, 0, 70, 90), 70)
    difference = (crop.float() - pil_crop(path, Box(0, 0, 70, 90), 70).float()).abs()
    assert difference.max() < 8
    if mode == 'L':
        assert torch.equal(crop[0], crop[1])


# The standard's Huffman tables for luminance.
DC_TABLE = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, *[0] * 7, *range(12)])
AC_TABLE = bytes([1, *[0] * 15, 0])  # the code '0' ends a block


def plain_jpeg(factors: list[tuple[int, int]], width: int = 100, height: int = 90) -> bytes:
    """A JPEG of one colour whose components have these sampling factors, across and down."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([255, marker]) + (len(content) + 2).to_bytes(2, 'big') + content

    across, down = (8 * max(column) for column in zip(*factors, strict=True))
    units = -(-width // across) * -(-height // down)
    # The first block of each component is 20 levels above or below 128: '110' says that five bits
    # follow. All others are like it: '00' says that the difference is 0.
    bits = ''.join(
        f'110{first}0' + '000' * (a * d - 1)
        for first, (a, d) in zip(('10100', '01011', '10100', '01011'), factors, strict=False)
    )
    bits += '000' * (sum(a * d for a, d in factors) * (units - 1))
    bits += '1' * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, 'big').replace(b'\xff', b'\xff\0')
    count = len(factors)
    frame = b'\x08' + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + bytes([count])
    frame += b''.join(bytes([i, a << 4 | d, 0]) for i, (a, d) in enumerate(factors, 1))
    return (
        b'\xff\xd8'
        + segment(0xDB, b'\0' + b'\x08' * 64)
        + segment(0xC0, frame)
        + segment(0xC4, b'\0' + DC_TABLE)
        + segment(0xC4, b'\x10' + AC_TABLE)
        + segment(0xDA, bytes([count, *(b for i in range(count) for b in (i + 1, 0)), 0, 63, 0]))
        + scan
        + b'\xff\xd9'
    )


@pytest.mark.parametrize(
    'factors',
    [
        [(2, 2), (1, 1), (1, 1)],
        [(4, 2), (1, 1), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(1, 4), (1, 1), (1, 1)],
        [(2, 2), (2, 1), (2, 1)],
        [(2, 1), (2, 1), (1, 1)],
        [(2, 2), (1, 2), (1, 2)],
        [(2, 1), (2, 1), (2, 1)],
        [(2, 2), (1, 1), (1, 1), (1, 1)],
        [(1, 1)],
        [(2, 2)],
    ],
)
def test_any_chroma_sampling_is_read_as_pil_reads_it(factors: list, tmp_path: Path) -> None:
    """libjpeg-turbo's interface has no name for some, which PIL reads."""
    path = tmp_path / 'image.jpg'
    path.write_bytes(plain_jpeg(factors))
    assert check_image(path) is None
    expected = np.array(Image.open(path).convert('RGB'))
    assert (expected.shape, expected.std((0, 1)).max()) == ((90, 100, 3), 0)
    crop = EncodedImage(path).crop(Box(10, 20, 64, 72), 32)
    difference = crop.float() - torch.tensor(expected[0, 0]).float()[:, None, None]
    assert difference.abs().max() <= 1


def test_what_no_decoder_reads_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'image.jpg'
    for data in (plain_jpeg([(4, 2), (1, 1), (1, 1)])[:-40], b'\xff\xd8 and no more', b'text'):
        path.write_bytes(data)
        assert check_image(path) in UNUSABLE
        with pytest.raises(UserError, match=r'image.jpg cannot be decoded'):
            EncodedImage(path).crop(Box(0, 0, 90, 100), 32)


def test_a_png_may_be_called_jpeg(tmp_path: Path) -> None:
    """ImageNet has one."""
    buffer = io.BytesIO()
    smooth(40, 30).save(buffer, 'PNG')
    (tmp_path / 'image.JPEG').write_bytes(buffer.getvalue())
    assert EncodedImage(tmp_path / 'image.JPEG').crop(Box(0, 0, 30, 40), 16).shape == (3, 16, 16)


def test_centre_box_is_the_single_centre_crop(tmp_path: Path) -> None:
    path = tmp_path / 'image.png'
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    for width, height in ((500, 375), (375, 500), (256, 300), (640, 427)):
        smooth(width, height).save(path)
        ours = EncodedImage(path).crop(centre_box(height, width), 224).float()
        difference = (ours - reference(Image.open(path)).float()).abs()
        # Theirs is cut after the resize, to the nearest of its pixels.
        assert difference.mean() < 1
        assert difference.max() < 8
    assert centre_box(1, 1) == Box(0, 0, 1, 1)


def test_random_boxes_cover_area_and_aspect() -> None:
    with torch_seed(0):
        boxes = [random_box(375, 500, AREA) for _ in range(2000)]
    for box in boxes:
        assert 0 <= box.top <= box.top + box.height <= 375
        assert 0 <= box.left <= box.left + box.width <= 500
    shares = torch.tensor([box.height * box.width / (375 * 500) for box in boxes])
    ratios = torch.tensor([box.width / box.height for box in boxes])
    assert shares.min() > 0.079
    assert 0.08 <= shares.quantile(0.02) < 0.12 < 0.7 < shares.quantile(0.98)
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
