"""Predictions of a checkpoint on the user's own images."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from downstream.predict import Found, _areas, _boxes, _classify, _pipeline, predict
from downstream.trained import load_trained
from pretrain.datasets.decode import EncodedImage
from pretrain.runs.errors import UserError
from tests.downstream.conftest import Finished


@pytest.fixture
def classifier(train: Callable, tmp_path: Path) -> Path:
    train('bl', tmp_path / 'run', 'epochs=1', 'algorithm.generations=1')
    return tmp_path / 'run/snapshot_1.pth'


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A colour and a greyscale image, in other sizes than the network's input."""
    generator = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    files = [tmp_path / 'photos' / name for name in ('colour.jpg', 'grey.png')]
    Image.fromarray(pixels).save(files[0])
    Image.fromarray(pixels[:40, :40, 0]).save(files[1])
    return files


def test_a_gpu_predicts_in_the_float32_of_the_run(tf32: None, classifier: Path) -> None:
    load_trained(classifier)
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def test_classifier_sees_what_it_is_tested_on(
    classifier: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Images are preprocessed like the test images of the run."""
    from pretrain.datasets.image_folder import ClassFolder

    dataset = ClassFolder(str(image_folder), 'val', 0, 32)
    model = load_trained(classifier).model
    inputs = torch.stack([dataset[0, index]['inputs'] for index in (0, 4)])
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    with torch.inference_mode():
        expected = model.student((inputs - mean) / std).double().softmax(dim=1)
    images = [image_folder / dataset.paths[index].decode() for index in (0, 4)]
    found = [
        *predict(classifier, images[:1], tmp_path),
        *predict(classifier, images[1:], tmp_path),
    ]
    for (_, file, classes), scores in zip(found, expected.tolist(), strict=True):
        assert file.is_file()
        assert [one.score for one in classes] == pytest.approx(
            sorted(scores, reverse=True), rel=1e-4
        )
        assert [one.name for one in classes] == [
            f'class{label}' for label in np.argsort(scores)[::-1]
        ]


def test_images_are_drawn_beside_or_in_a_folder(
    classifier: Path, photos: list[Path], tmp_path: Path
) -> None:
    beside = [file for _, file, _ in predict(classifier, photos)]
    assert beside == [
        photos[0].with_name('colour_predicted.png'),
        photos[1].with_name('grey_predicted.png'),
    ]
    for file, photo in zip(beside, photos, strict=True):
        drawn, original = np.asarray(Image.open(file)), np.asarray(Image.open(photo).convert('RGB'))
        height, width, _ = original.shape
        assert np.array_equal(drawn[:height, :width], original)
        assert drawn[height:].min() < 128  # text
    (_, file, _), *_ = predict(classifier, photos, tmp_path / 'new/folder')
    assert file == tmp_path / 'new/folder/colour_predicted.png'
    assert file.is_file()


def test_detector_or_segmenter_draws_what_it_finds(
    finished: Finished, photos: list[Path], tmp_path: Path
) -> None:
    images = list(predict(finished.checkpoint, photos, tmp_path / 'out', threshold=0.0))
    for photo, (source, file, found) in zip(photos, images, strict=True):
        assert source == photo
        drawn, original = Image.open(file), Image.open(photo)
        assert drawn.size == original.size
        if original.mode == 'RGB':  # red and blue are not swapped
            ours, theirs = (np.asarray(image).astype(int) for image in (drawn, original))
            assert abs(ours - theirs).mean() < abs(ours - theirs[..., ::-1]).mean()
        if found:  # a tiny detector may find nothing
            assert not np.array_equal(np.asarray(drawn), np.asarray(original.convert('RGB')))
        assert all(0 <= one.score <= 1 and one.where for one in found)
        if 'faster_rcnn' in finished.config:
            assert found == sorted(found, key=lambda one: -one.score)
            for one in found:
                x1, y1, x2, y2 = map(int, one.where.split(','))
                assert 0 <= x1 <= x2 <= original.width
                assert 0 <= y1 <= y2 <= original.height
        else:
            shares = [float(one.where.split('%')[0]) for one in found]
            assert shares == sorted(shares, reverse=True)
            assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


@pytest.mark.parametrize('size', [(1, 1), (60, 1), (2, 201)])
def test_only_a_classifier_takes_a_thin_image(
    size: tuple, finished: Finished, classifier: Path, tmp_path: Path
) -> None:
    image = tmp_path / 'thin.png'
    Image.new('RGB', size).save(image)
    assert list(predict(classifier, [image], tmp_path / 'out'))
    with pytest.raises(UserError, match=r'thin\.png cannot be used \(too thin\)'):
        list(predict(finished.checkpoint, [image], tmp_path / 'out'))


def test_a_segmenter_scores_a_class_by_its_own_pixels() -> None:
    logits = 3 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[2] = -10  # a class without pixels
    result = SimpleNamespace(
        seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=logits.argmax(0)[None])
    )
    scores = {'ground': [], 'otter': []}
    for pixel in logits.double().flatten(1).T:
        odds = pixel.exp() / pixel.exp().sum()
        scores[('ground', 'otter', 'lynx')[odds.argmax()]].append(odds.max().item())
    expected = [
        Found(name, pytest.approx(np.mean(values)), f'{len(values) / 20:.1%} of the image')
        for name, values in sorted(scores.items(), key=lambda pair: -len(pair[1]))
    ]
    assert _areas(result, {'classes': ('ground', 'otter', 'lynx')}) == expected
    assert len({len(values) for values in scores.values()}) == 2


def test_threshold_leaves_out_boxes() -> None:
    instances = InstanceData(
        labels=torch.tensor([1, 0, 1]),
        scores=torch.tensor([0.75, 0.5, 0.25]),
        bboxes=torch.tensor([[1.2, 2.0, 30.9, 4.0], [5.0, 6.0, 7.0, 8.0], [0.0, 0.0, 9.0, 9.0]]),
    )
    result = SimpleNamespace(pred_instances=instances)
    first, second = Found('dog', 0.75, '1,2,31,4'), Found('cat', 0.5, '5,6,7,8')
    assert _boxes(result, ('cat', 'dog'), 0.3) == [first, second]
    assert _boxes(result, ('cat', 'dog'), 0.5) == [first, second]
    assert _boxes(result, ('cat', 'dog'), 0.6) == [first]
    assert len(_boxes(result, ('cat', 'dog'), 0.0)) == 3


def test_what_cannot_be_used_is_one_sentence(
    classifier: Path,
    photos: list[Path],
    tmp_path: Path,
    backbone_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, cut = tmp_path / 'text.jpg', tmp_path / 'cut.jpg'
    text.write_text('no image')
    cut.write_bytes(photos[0].read_bytes()[:600])
    for bad, message in [
        (tmp_path / 'none.jpg', r'No image .*none\.jpg: give the paths of files'),
        (tmp_path, 'No image'),
        (text, r'text\.jpg cannot be used \(not an image\)'),
        (cut, r'cut\.jpg cannot be used \(truncated\)'),
    ]:
        with pytest.raises(UserError, match=message):
            list(predict(classifier, [photos[0], bad], tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match='No checkpoint'):
        list(predict(tmp_path / 'none.pth', photos))
    with pytest.raises(UserError, match='is a backbone file, which is only a part of a network'):
        list(predict(backbone_file, photos))
    for other in (photos[0].with_suffix('.png'), photos[0].with_name('colour_predicted.png')):
        Image.open(photos[0]).save(other)
        before = other.read_bytes()
        with pytest.raises(UserError, match=r'colour_predicted\.png would overwrite another'):
            list(predict(classifier, [photos[0], other]))
        monkeypatch.chdir(other.parent)
        with pytest.raises(UserError, match=r'colour_predicted\.png would overwrite another'):
            list(predict(classifier, [Path(photos[0].name), other]))
        assert other.read_bytes() == before


def test_a_classifier_of_cifar_100_sees_whole_images(tmp_path: Path) -> None:
    """As in its test, in which no image is cropped."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    seen = []

    class Model:
        def data_preprocessor(self, batch: dict) -> dict:
            seen.extend(batch['inputs'])
            return {'inputs': torch.zeros(1, 2)}

        def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs

    trained = SimpleNamespace(model=Model(), settings={}, metainfo={'classes': ('a', 'b')})
    _classify(trained)(tmp_path / 'image.png', tmp_path / 'drawn.png')
    assert np.array_equal(seen[0].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize('several', [False, True])
def test_images_are_resized_as_in_the_validation(several: bool) -> None:
    """Also of several data sets, and by a step that states its own size."""
    steps = [{'type': 'Resize', 'scale': (96, 72)}, {'type': 'LoadAnnotations'}]
    dataset = {'type': 'VOCDataset', 'pipeline': steps}
    if several:
        dataset = {'type': 'ConcatDataset', 'datasets': [dataset, dataset]}
    for scale, expected in ((None, (96, 72)), ([64, 48], (64, 48))):
        settings = ConfigDict(val_dataloader={'dataset': dataset}, image_scale=scale)
        assert _pipeline(settings) == [{'type': 'Resize', 'scale': expected}]


def test_a_classifier_sees_images_of_its_own_size(
    train: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train('bl', tmp_path / 'run', 'epochs=1', 'algorithm.generations=1', 'image_size=40')
    sizes, crop = [], EncodedImage.crop
    monkeypatch.setattr(EncodedImage, 'crop', lambda *a: sizes.append(a[-1]) or crop(*a))
    list(predict(tmp_path / 'run/snapshot_1.pth', [image_folder / 'val/class0/0.png'], tmp_path))
    assert sizes == [40]
