"""What a trained classifier, detector or segmenter finds in the user's own pictures."""

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
from pretrain.datasets.decode import Picture, centre_box
from pretrain.datasets.picture_checks import UNUSABLE, check_picture
from pretrain.runs.errors import UserError

BEST_CLASSES = 5  # of a classifier, that are shown


class Found(NamedTuple):
    """A class in a picture.

    Attributes:
        name: of the class.
        score: its probability; of a segmenter the mean over the pixels of the class.
        where: a detector's box, ``x1,y1,x2,y2`` in pixels, or a segmenter's share of the pixels.
    """

    name: str
    score: float
    where: str = ''


def predict(
    checkpoint: str | Path,
    pictures: Sequence[Path],
    out: Path | None = None,
    threshold: float = 0.3,
) -> Iterator[tuple[Path, Path, list[Found]]]:
    """Predict pictures and draw the predictions.

    Args:
        checkpoint: of a pretraining or fine-tuning run of this suite.
        pictures: the files.
        out: the folder for the drawn pictures, ``<name>_predicted.png``; by default each lies
            beside its picture.
        threshold: the least score of a detector's box.

    Yields:
        A picture, the drawn file, and what was found, the best first.

    Raises:
        UserError: before anything is predicted, if the checkpoint or a picture cannot be used, or
            one would be drawn over another.
    """
    files = [(out or picture.parent) / f'{picture.stem}_predicted.png' for picture in pictures]
    if lost := [file for file, count in Counter([*files, *pictures]).items() if count > 1]:
        raise UserError(
            f'{lost[0]} would be drawn over another picture: add --out with a folder for what is '
            'drawn, and predict pictures of the same name in separate calls.'
        )
    trained = load_trained(checkpoint)
    is_classifier = trained.kind == 'classifier'
    for picture in pictures:
        if not picture.is_file():
            raise UserError(f'No picture {picture}: give the paths of files, such as photos/*.jpg.')
        if reason := _unusable(picture, may_be_thin=is_classifier):
            raise UserError(f'{picture} cannot be used ({reason}).')
    predicted = _classify(trained) if is_classifier else _find(trained, threshold)
    for picture, file in zip(pictures, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield picture, file, predicted(picture, file)


def _unusable(picture: Path, may_be_thin: bool) -> str | None:
    """Why a picture cannot be used, if it cannot."""
    if (kind := check_picture(picture)) in UNUSABLE:
        return kind
    if (image := mmcv.imread(picture)) is None:
        return 'OpenCV cannot read it'
    height, width, _ = image.shape
    return None if may_be_thin or not is_too_thin(width, height) else 'too thin'


def _classify(trained: Trained) -> Callable[[Path, Path], list[Found]]:
    model, classes = trained.model, trained.metainfo['classes']
    size = trained.settings.get('image_size', CIFAR_SIZE)

    def predicted(picture: Path, file: Path) -> list[Found]:
        image = Picture(picture)
        pixels = image.crop(centre_box(image.height, image.width), size)
        with torch.inference_mode():
            inputs = model.data_preprocessor({'inputs': [pixels]})['inputs']
            scores = model(inputs)[0].softmax(dim=0)
        best = scores.topk(min(BEST_CLASSES, len(classes)))
        found = [Found(classes[i], p) for p, i in zip(*map(torch.Tensor.tolist, best), strict=True)]
        _write_below(picture, file, found)
        return found

    return predicted


def _write_below(picture: Path, file: Path, found: Sequence[Found]) -> None:
    """Draw a picture and, below it, a line for each class."""
    image = Image.open(picture).convert('RGB')
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

    def predicted(picture: Path, file: Path) -> list[Found]:
        with TRANSFORMS.switch_scope_and_registry(settings.default_scope):
            sample = Compose(_pipeline(settings))({'img_path': str(picture), 'img_id': 0})
        with torch.inference_mode():
            (result,) = trained.model.test_step(pseudo_collate([sample]))
        image = mmcv.imread(picture, channel_order='rgb')
        drawing = dict(draw_gt=False, out_file=str(file), **shown)
        visualizer.add_datasample(picture.stem, image, result, **drawing)
        return _boxes(result, meta['classes'], threshold) if detector else _areas(result, meta)

    return predicted


def _pipeline(settings: ConfigDict) -> list[dict]:
    """The steps of validation that need no truth, at the size that the run validated at."""
    steps = settings.val_dataloader.dataset.pipeline
    steps = [step.to_dict() for step in steps if step.type != 'LoadAnnotations']
    for step in steps:
        if step['type'] == 'Resize':
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
        Found(name, float(np.mean(scores[mask])), f'{mask.mean():.1%} of the picture')
        for name, mask in masks.items()
        if mask.any()
    ]
    return sorted(found, key=lambda one: -masks[one.name].sum())
