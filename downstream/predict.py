"""Predict the user's own images with a trained classifier, detector or segmenter."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS, VISUALIZERS
from PIL import Image, ImageDraw, ImageFont

from downstream.pictures import VISUALIZERS_BY_TASK, dataset_meta
from downstream.trained import Trained, load_trained
from downstream.voc_checks import is_too_thin
from pretrain.datasets.cifar import SIZE as CIFAR_SIZE
from pretrain.datasets.decode import CENTRE_SHARE, EncodedImage, centre_box
from pretrain.datasets.image_checks import check_image
from pretrain.runs.errors import UserError

BEST_CLASSES = 5  # shown for a classifier


class Found(NamedTuple):
    """A prediction: a class of the image, an object, or a class of pixels.

    Attributes:
        name: the class name.
        score: its probability; for a segmenter, the mean over the pixels of the class.
        where: a detector's box ``x1,y1,x2,y2`` in pixels, or the share of the pixels, such as
            ``12.5% of the image``, that a segmenter gives the class; empty for a classifier.
    """

    name: str
    score: float
    where: str = ''


def predict(
    checkpoint: str | Path,
    images: Sequence[Path],
    out: Path | None = None,
    threshold: float = 0.3,
) -> Iterator[tuple[Path, Path, list[Found]]]:
    """Predict images and draw the predictions.

    Args:
        checkpoint: a checkpoint of a pretraining or fine-tuning run of this suite.
        images: paths of image files.
        out: the folder for the pictures, ``<name>_predicted.png``; by default, that of each image.
        threshold: minimum score, 0-1, of a detector's boxes; the other networks ignore it.

    Yields:
        The path of an image, that of its picture, and the predictions: a classifier's five best
        classes and a detector's boxes by score, a segmenter's classes by area, all descending.

    Raises:
        UserError: before the first prediction, if the checkpoint or an image cannot be used, or a
            picture would overwrite an image or another picture.
    """
    files = [(out or path.parent) / f'{path.stem}_predicted.png' for path in images]
    places = Counter(path.resolve() for path in (*files, *images))
    if lost := [file for file, count in places.items() if count > 1]:
        raise UserError(
            f'{lost[0]} would overwrite another image: add --out FOLDER for the pictures, and '
            'predict images of the same name in separate calls.'
        )
    trained = load_trained(checkpoint)
    is_classifier = trained.kind == 'classifier'
    for path in images:
        if not path.is_file():
            raise UserError(f'No image {path}: give the paths of files, such as photos/*.jpg.')
        if reason := _unusable(path, may_be_thin=is_classifier):
            raise UserError(f'{path} cannot be used ({reason}): leave it out.')
    predicted = _classify(trained) if is_classifier else _find(trained, threshold)
    for path, file in zip(images, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield path, file, predicted(path, file)


def _unusable(path: Path, may_be_thin: bool) -> str | None:
    """The reason why an image cannot be used, or None if it can."""
    if kind := check_image(path):
        return kind
    if (image := mmcv.imread(path)) is None:
        return 'OpenCV cannot read it'
    height, width, _ = image.shape
    return None if may_be_thin or not is_too_thin(width, height) else 'too thin'


def _classify(trained: Trained) -> Callable[[Path, Path], list[Found]]:
    model, classes = trained.model, trained.metainfo['classes']
    folder = 'image_size' in trained.settings  # else CIFAR-100, whose whole images are the test's
    size, share = (trained.settings.image_size, CENTRE_SHARE) if folder else (CIFAR_SIZE, 1.0)

    def predicted(path: Path, file: Path) -> list[Found]:
        image = EncodedImage(path)
        pixels = image.crop(centre_box(image.height, image.width, share), size)
        with torch.inference_mode():
            inputs = model.data_preprocessor({'inputs': [pixels]})['inputs']
            scores = model(inputs)[0].softmax(dim=0)
        best = scores.topk(min(BEST_CLASSES, len(classes)))
        found = [Found(classes[i], p) for p, i in zip(*map(torch.Tensor.tolist, best), strict=True)]
        _write_below(path, file, found)
        return found

    return predicted


def _write_below(path: Path, file: Path, found: Sequence[Found]) -> None:
    """Save a picture of the image with a line for each class below it."""
    image = Image.open(path).convert('RGB')
    width, line = max(image.width, 320), max(14, image.width // 30)
    canvas = Image.new('RGB', (width, image.height + line * len(found) + line // 2), 'white')
    canvas.paste(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(line * 0.8)
    for row, (name, score, _) in enumerate(found):
        text = f'{score:7.1%}  {name}'
        draw.text((line // 2, image.height + row * line), text, 'black', font)
    canvas.save(file)


def _find(trained: Trained, threshold: float) -> Callable[[Path, Path], list[Found]]:
    settings, meta = trained.settings, dataset_meta(trained.metainfo)
    visualizer = VISUALIZERS.build(VISUALIZERS_BY_TASK[settings.task])
    visualizer.dataset_meta = meta
    detector = trained.kind == 'detector'
    shown = {'pred_score_thr': threshold} if detector else {}

    def predicted(path: Path, file: Path) -> list[Found]:
        with TRANSFORMS.switch_scope_and_registry(settings.default_scope):
            sample = Compose(_pipeline(settings))({'img_path': str(path), 'img_id': 0})
        with torch.inference_mode():
            (result,) = trained.model.test_step(pseudo_collate([sample]))
        image = mmcv.imread(path, channel_order='rgb')
        drawing = dict(draw_gt=False, out_file=str(file), **shown)
        visualizer.add_datasample(path.stem, image, result, **drawing)
        return _boxes(result, meta['classes'], threshold) if detector else _areas(result, meta)

    return predicted


def _pipeline(settings: ConfigDict) -> list[dict]:
    """The run's validation pipeline without ground truth, at the run's image scale."""
    dataset = settings.val_dataloader.dataset
    first, *_ = dataset.get('datasets') or [dataset]
    steps = [step.to_dict() for step in first.pipeline if step.type != 'LoadAnnotations']
    for step in steps:
        if step['type'] == 'Resize' and settings.image_scale is not None:
            step['scale'] = tuple(settings.image_scale)
    return steps


def _boxes(result: Any, classes: Sequence[str], threshold: float) -> list[Found]:
    found = result.pred_instances.cpu().numpy()
    return [
        Found(classes[label], float(score), ','.join(f'{side:.0f}' for side in box))
        for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True)
        if score >= threshold
    ]


def _areas(result: Any, meta: dict) -> list[Found]:
    labels = result.pred_sem_seg.data[0].cpu().numpy()
    scores = result.seg_logits.data.softmax(dim=0).amax(dim=0).cpu().numpy()
    masks = {name: labels == index for index, name in enumerate(meta['classes'])}
    found = [
        Found(name, float(np.mean(scores[mask])), f'{mask.mean():.1%} of the image')
        for name, mask in masks.items()
        if mask.any()
    ]
    return sorted(found, key=lambda one: -masks[one.name].sum())
