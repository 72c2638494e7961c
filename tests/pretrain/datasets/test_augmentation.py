import math

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pretrain.datasets.augmentation import (
    AugmentingPreprocessor,
    draw_augmentation,
    flip_and_rotate,
    jitter,
)
from pretrain.runs.randomness import torch_seed

MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(0)).float()


def test_jitter_is_torchvisions_one_image_after_the_other(images: torch.Tensor) -> None:
    factors = 0.6 + 0.8 * torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    untouched = images.clone()
    ours = jitter(images, factors)
    for image, (brightness, contrast, saturation), result in zip(
        images, factors.tolist(), ours, strict=True
    ):
        expected = reference.adjust_brightness(image / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = 255 * reference.adjust_saturation(expected, saturation)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)  # float32, of 255
    assert torch.equal(images, untouched)
    torch.testing.assert_close(jitter(images, torch.ones(6, 3)), images, rtol=0, atol=1e-4)


def test_turn_is_mirror_then_rotation(images: torch.Tensor) -> None:
    angles = torch.tensor([0.0, 0.0, 0.1, -0.17, 0.17, math.pi / 2])
    mirrored = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    for image, angle, mirror, result in zip(
        images,
        angles.tolist(),
        mirrored.tolist(),
        flip_and_rotate(images, mirrored, angles),
        strict=True,
    ):
        expected = image.flip(-1) if mirror else image
        expected = reference.rotate(
            expected, math.degrees(angle), interpolation=reference.InterpolationMode.BILINEAR
        )
        # Inside, where no grey is mixed in: the two differ in how they treat the border.
        inside = slice(3, -3)
        torch.testing.assert_close(
            result[:, inside, inside], expected[:, inside, inside], rtol=0, atol=0.05
        )


def test_rotation_uncovers_the_mean_grey() -> None:
    preprocessor = AugmentingPreprocessor(mean=MEAN, std=STD)
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    plain = torch.tensor([[0.0, math.radians(10), 1.0, 1.0, 1.0]])
    batch = preprocessor(
        {'inputs': white, 'data_samples': torch.tensor([0]), 'augmentation': plain}, True
    )
    assert batch.keys() == {'inputs', 'data_samples'}
    assert batch['inputs'][0, :, 0, 0].abs().max() < 0.2
    expected = (255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(batch['inputs'][0, :, 16, 16], expected)


def test_what_is_not_augmented_is_normalised(images: torch.Tensor) -> None:
    preprocessor = AugmentingPreprocessor(mean=MEAN, std=STD)
    identity = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).repeat(6, 1)
    expected = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for data in ({'inputs': images}, {'inputs': images, 'augmentation': identity}):
        torch.testing.assert_close(preprocessor(data)['inputs'], expected, rtol=0, atol=1e-4)
        assert 'inputs' in data


def test_an_image_s_augmentation_does_not_depend_on_its_batch(images: torch.Tensor) -> None:
    """Bit for bit: a second process or smaller pieces see the same images."""
    preprocessor = AugmentingPreprocessor(mean=MEAN, std=STD)
    with torch_seed(0):
        rows = torch.stack([draw_augmentation() for _ in range(6)])
    whole = preprocessor({'inputs': images, 'augmentation': rows})['inputs']
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        alone = preprocessor({'inputs': images[part], 'augmentation': rows[part]})['inputs']
        assert torch.equal(whole[part], alone)


def test_draws_are_those_of_section_4_2() -> None:
    with torch_seed(0):
        mirrored, angle, *factors = torch.stack([draw_augmentation() for _ in range(4000)]).T
    assert set(mirrored.tolist()) == {0.0, 1.0}
    assert abs(mirrored.mean() - 0.5) < 0.05
    low, high = math.radians(-10), math.radians(10)
    assert low <= angle.min() < 0.99 * low
    assert 0.99 * high < angle.max() <= high
    for factor in factors:
        assert 0.6 <= factor.min() < 0.605
        assert 1.395 < factor.max() <= 1.4


def test_a_batch_is_jittered_normalised_and_turned_in_this_order(images: torch.Tensor) -> None:
    preprocessor = AugmentingPreprocessor(mean=MEAN, std=STD)
    drawn = torch.tensor([[1.0, 0.1, 0.7, 1.3, 0.8]]).repeat(6, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = (jitter(images, drawn[:, 2:]) - mean) / std
    expected = flip_and_rotate(expected, drawn[:, 0], drawn[:, 1])
    result = preprocessor({'inputs': images, 'augmentation': drawn})['inputs']
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)  # float32 in another order
