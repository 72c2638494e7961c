"""Test a checkpoint on the images of a config: the overall metrics and those of each class."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch.utils.data import Dataset
from tqdm import tqdm

from downstream.build import not_identity, prepare_without_backbone, training_images
from downstream.trained import KINDS, Trained, load_trained
from pretrain.build import prepare
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError, counted, number_of
from pretrain.runs.identity import covers, differences, identity_of, in_words
from pretrain.runs.precision import resolve_precision
from pretrain.runs.tables import DASH, Table

# Settings that change the test data or how a checkpoint is tested.
TEST_SETTINGS = 'image_size', 'image_scale', 'precision', 'val_dataloader', 'val_evaluator'

FREQUENT = 50  # a class needs this many training images to be learned
# Metrics in percent, the column titles of the per-class count and metric, and these two per class.
Result = tuple[dict[str, float], tuple[str, str], list[tuple[int, float]]]


@torch.inference_mode()
def evaluate(config_path: str | Path, checkpoint: str | Path, options: Sequence[str] = ()) -> str:
    """Test a checkpoint of a classifier, a detector or a segmenter.

    The checkpoint gives the model and its preprocessing; the config gives the images and the
    metric.

    Args:
        config_path: a pretraining or fine-tuning config.
        checkpoint: a checkpoint of a run of this suite.
        options: ``key=value`` overrides of the config.

    Returns:
        A line of metrics and a Markdown table with a row for each class, all in percent.

    Raises:
        UserError: if the checkpoint, the config or the data cannot be used, or their tasks or
            classes differ.
    """
    config = load_config(config_path, options)
    if config.task not in KINDS:
        raise UserError(
            f'{config_path} trains no network that could be tested: give the config of a '
            'classifier, detector or segmenter.'
        )
    trained = load_trained(checkpoint, resolve_precision(config.precision))
    if config.task != trained.settings.task:
        raise UserError(
            f'{checkpoint} holds a {trained.kind}, but {config_path} is of a '
            f'{KINDS[config.task]}: give the config that the checkpoint was trained with.'
        )
    config = _prepare_test(config, trained)
    _warn_of_differences(checkpoint, trained, config)
    with METRICS.switch_scope_and_registry(config.default_scope):
        loader = Runner.build_dataloader(config.val_dataloader, seed=0)
        metric = METRICS.build(config.val_evaluator)
    theirs, ours = (tuple(m['classes']) for m in (trained.metainfo, loader.dataset.metainfo))
    if theirs != ours:
        raise UserError(
            f'{checkpoint} was trained on {counted(theirs, "classes")}, but the test images have '
            f'{counted(ours, "classes")}: give data with the same classes in the same order.'
        )
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in tqdm(loader, 'testing', mininterval=5):
        evaluator.process(trained.model.val_step(batch), batch)
    metrics, columns, classes = _RESULTS[config.task](metric, loader.dataset)
    images = None if config.task == 'classification' else training_images(config)
    if images is not None:
        metrics |= _of_frequent_classes(next(iter(metrics)), [v for _, v in classes], images)
    line = ', '.join(f'{name} {value:.2f}' for name, value in metrics.items())
    return f'{line}\n\n{_table(ours, columns, classes, images)}'


def _prepare_test(config: Config, trained: Trained) -> Config:
    """Check the data of a config and complete the config for testing the checkpoint.

    The checks pass for any number of training images, which a test does not use.
    """
    if config.task == 'classification':
        config.model.network = trained.settings.model.network
        # A test needs neither the teacher nor the initial weights of the student.
        config.algorithm.features = {}
        config.algorithm.taught_after = 0
        config.teacher = config.initial = dict(network={}, checkpoint=None)
        batch_size = config.batch_size
        config.update(batch_size=1, micro_batches=1)
        config = prepare(config)
        config.val_dataloader.batch_size = batch_size
        return config
    config.update(batch_size=2, micro_batches=1)
    return prepare_without_backbone(config)


def _table(
    names: Sequence[str],
    columns: tuple[str, str],
    classes: Sequence[tuple[int, float]],
    images: Sequence[int] | None,
) -> Table:
    """A row for each class: its name, training ``images`` if given, test count and metric."""
    rows = [
        [name, str(count), DASH if np.isnan(value) else f'{value:.2f}']
        for name, (count, value) in zip(names, classes, strict=True)
    ]
    if images is not None:
        columns = 'training images', *columns
        rows = [[name, str(n), *row] for n, (name, *row) in zip(images, rows, strict=True)]
    return Table(['class', *columns], rows, notes=['In percent.'])


def _of_frequent_classes(
    metric: str, values: Sequence[float], images: Sequence[int]
) -> dict[str, float]:
    """The mean over the classes with at least ``FREQUENT`` training images, under its title. Rarer
    classes are hardly learned and lower the overall mean; without any, the result is empty."""
    tested = [(v, n) for v, n in zip(values, images, strict=True) if not np.isnan(v)]
    frequent = [v for v, n in tested if n >= FREQUENT]
    if len(frequent) in (0, len(tested)):
        return {}
    classes = number_of(len(frequent), 'classes')
    title = f'{metric} of the {classes} with {FREQUENT} training images or more'
    return {title: float(np.mean(frequent))}


def _warn_of_differences(checkpoint: str | Path, trained: Trained, config: Config) -> None:
    """Warn of test settings that differ from those of the run's own validation."""
    # A config in a run's folder still has the identity of that run.
    prepared = config.task == 'classification'
    ours = config.identity.to_dict() if prepared else identity_of(config, not_identity(config))
    found = differences(trained.settings.to_dict(), ours)
    if found := {key: values for key, values in found.items() if covers(TEST_SETTINGS, key)}:
        words = in_words(found, 'was trained with', 'but is tested with')
        print(f'warning: {checkpoint} {words}.', file=sys.stderr)


def _classification(metric: BaseMetric, dataset: Dataset) -> Result:
    labels = torch.as_tensor(dataset.labels).cpu().numpy()
    wrong = np.array([result[0] for result in metric.results])
    classes = range(len(dataset.metainfo['classes']))
    chosen = [wrong[labels == label] for label in classes]
    errors = [(len(w), 100 * w.mean() if len(w) else np.nan) for w in chosen]
    return metric.compute_metrics(metric.results), ('images', 'top-1 error'), errors


def _detection(metric: BaseMetric, _: Dataset) -> Result:
    from mmdet.evaluation import eval_map  # needs the installed mmcv operators

    truths, predictions = zip(*metric.results, strict=True)
    found = [
        eval_map(
            predictions,
            truths,
            iou_thr=threshold,
            logger='silent',
            eval_mode=metric.eval_mode,
            use_legacy_coordinate=True,  # as in VOCMetric
        )
        for threshold in metric.iou_thrs
    ]
    counts = [int(c['num_gts']) for c in found[0][1]]
    # VOCMetric's mAP is the mean over the thresholds.
    precisions = np.mean([[float(c['ap']) for c in classes] for _, classes in found], axis=0)
    values = np.where(counts, 100 * precisions, np.nan).tolist()
    mean = 100 * float(np.mean([mean for mean, _ in found]))
    return {'mAP': mean}, ('objects', 'AP'), [*zip(counts, values, strict=True)]


def _segmentation(metric: BaseMetric, _: Dataset) -> Result:
    intersection, union, _, pixels = (
        sum(areas).numpy() for areas in zip(*metric.results, strict=True)
    )
    with np.errstate(invalid='ignore'):  # a class neither present nor predicted
        values = 100 * intersection / union
    metrics = {
        'mIoU': np.nanmean(values),
        'pixel accuracy': 100 * intersection.sum() / pixels.sum(),
    }
    return metrics, ('pixels', 'IoU'), [*zip(pixels.astype(int).tolist(), values, strict=True)]


_RESULTS: dict[str, Callable[[BaseMetric, Dataset], Result]] = {
    'classification': _classification,
    'detection': _detection,
    'segmentation': _segmentation,
}
