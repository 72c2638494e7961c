"""Complete a detection, segmentation or probe config for the Runner (Section 4.3)."""

import copy
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.registry import MODELS

# Imported to register the types that configs name.
import downstream.pictures
import downstream.precision
import downstream.probe
import pretrain.runs.log
import pretrain.runs.randomness
import pretrain.runs.record
import pretrain.runs.train_loop  # noqa: F401
from downstream.backbone import backbone_parts, check_handoff, take_layers, top_level
from downstream.mmcv_ops import install
from downstream.voc_checks import (
    Split,
    check_detection,
    check_segmentation,
    count_images,
    metainfo,
)
from pretrain.datasets.image_folder import ClassFolder
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.config import (
    batch_per_process,
    check_counts,
    check_names,
    check_settings,
    check_whole_numbers,
    walk,
)
from pretrain.runs.errors import UserError, in_one_line
from pretrain.runs.file_checks import content_sha256
from pretrain.runs.identity import identity_of
from pretrain.runs.precision import resolve_precision

# Not part of a run's identity: the path of the backbone file, how a probe loads its images,
_NOT_IDENTITY = 'backbone_file', 'model.backbone.init_cfg', 'model.roi_head.shared_head.init_cfg'
_NOT_IDENTITY += 'loader', 'skip'
# and settings that `prepare` derives from others.
_NOT_IDENTITY += 'default_hooks.pictures', 'default_hooks.buffers', 'train_cfg.micro_batches'
_NOT_IDENTITY += 'train_dataloader.batch_size', 'train_dataloader.dataset.seed'
_NOT_IDENTITY += ('model.data_preprocessor.size',)
# By task: a config with all settings.
COMPLETE = {
    'detection': 'configs/downstream/faster_rcnn_r152_voc07.py',
    'segmentation': 'configs/downstream/deeplabv3_r152_voc12aug.py',
    'probe': 'configs/downstream/knn_r152.py',
}
# Settings that `prepare` replaces, and what to do instead.
REPLACED = {
    'model.pretrained': 'set backbone_file=FILE',
    'model.backbone.init_cfg': 'set backbone_file=FILE',
    'model.roi_head.shared_head.init_cfg': 'set backbone_file=FILE',
    'model.data_preprocessor.size': 'set crop_size',
    'model.roi_head.bbox_head.num_classes': 'set classes',
    'model.decode_head.num_classes': 'set classes',
    'model.auxiliary_head*num_classes': 'set classes',
    '*_dataloader.dataset*.metainfo': 'set classes',
    '*_dataloader.dataset*.data_root': 'set data_root',
}
# By the type of a pipeline's step: its argument, and the setting that gives it.
_SIZES_OF_STEPS = {
    'Resize': {'scale': 'image_scale'},
    'RandomResize': {'scale': 'image_scale', 'ratio_range': 'scale_range'},
    'RandomCrop': {'crop_size': 'crop_size'},
}
_LIBRARIES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'probe': 'mmdet'}
_SIZES = {f'{name}.{side}': 1 for name in ('image_scale', 'crop_size') for side in (0, 1)}


def prepare(config: Config, world_size: int = 1, elsewhere: bool = False) -> Config:
    """Check the data and the backbone file, and derive the rest of the config from its settings.

    ``data_root`` (a VOCdevkit folder), ``batch_size`` (over all processes), ``image_scale``,
    ``scale_range``, ``crop_size``, ``train_list`` and ``val_list`` set the data loaders;
    ``classes`` sets the loaders and the heads; ``backbone_file`` sets the model's ``init_cfg``;
    ``train_cfg.max_epochs`` sets the schedule. A probe reads ``data_root`` as an ImageNet-style
    folder. The new key ``identity`` must not change when a run resumes, see
    :mod:`pretrain.runs.identity`.

    Args:
        config: as :func:`pretrain.runs.config.load_config` returns it; it is not changed.
        world_size: number of processes.
        elsewhere: whether they run on another machine, a cluster's node with a GPU for each.

    Returns:
        The completed copy of ``config``.

    Raises:
        UserError: if the data, the backbone file or a setting cannot work.
    """
    config, content = _fill(config, world_size, elsewhere)
    backbone, data = _hand_over(config), content()
    if config.task != 'probe':
        loader, seed = config.train_dataloader, config.randomness.seed
        loader.dataset = dict(type='SeededDataset', dataset=loader.dataset, seed=seed)
    if not config.label:  # imported backbones have no algorithm
        known = 'algorithm' in backbone
        config.label = backbone['algorithm']['name'] if known else Path(backbone['source']).stem
    processes = 1 if config.task == 'probe' else world_size  # one does all the work of a probe
    config.identity = identity_of(
        config, not_identity(config), world_size=processes, backbone=backbone, data=data
    )
    return config


def not_identity(config: Config) -> list[str]:
    """The keys of a completed config that are not part of its identity, as patterns for
    :func:`pretrain.runs.identity.identity_of`."""
    steps = [(k, v) for k, v in walk(config.to_dict()) if re.search(r'\.pipeline\.\d+$', k)]
    sizes = [
        f'{key}.{name}'
        for key, step in steps
        for name, setting in _SIZES_OF_STEPS.get(step['type'], {}).items()
        if config.get(setting) is not None  # which gives the size, and is part of it
    ]
    return [*_NOT_IDENTITY, *sizes]


def prepare_without_backbone(
    config: Config, world_size: int = 1, elsewhere: bool = False
) -> Config:
    """Check and complete a config as :func:`prepare` does, but without backbone and identity."""
    return _fill(config, world_size, elsewhere)[0]


def _fill(config: Config, world_size: int, elsewhere: bool) -> tuple[Config, Callable[[], dict]]:
    """The config of :func:`prepare_without_backbone`, and a function that reads the data and
    returns its hashes by split."""
    install()
    config = copy.deepcopy(config)
    if config.get('task') not in (*COMPLETE,):
        raise UserError(f'task is {config.get("task")}: it must be {", ".join(COMPLETE)}.')
    check_names(config, COMPLETE[config.task], REPLACED)
    config.default_scope = _LIBRARIES[config.task]
    config.precision = resolve_precision(config.precision, elsewhere)
    if config.task == 'probe':
        config.runner_type = 'ProbeRunner'
        _check_probe(config)
        checked = ClassFolder.check(Path(config.data_root), 1, 1, config.skip_unusable)
        config.skip = checked.skip
        return config, checked.hash_content
    check_settings(config)
    if config.train_dataloader.dataset.type == 'SeededDataset':  # prepared already
        config.train_dataloader.dataset = config.train_dataloader.dataset.dataset
    config.runner_type = 'DownstreamRunner'
    _fill_loaders(config, world_size)
    config.train_cfg.micro_batches = config.micro_batches
    # With images of many sizes, cuDNN would search for the fastest algorithm again for each size.
    config.env_cfg.cudnn_benchmark = False
    _fill_schedule(config)
    if config.task == 'segmentation':
        _fill_segmentation(config, world_size, elsewhere or torch.cuda.is_available())
    else:
        _fill_detection(config)
    visualizer = downstream.pictures.VISUALIZERS_BY_TASK[config.task]
    config.default_hooks.pictures = dict(type='PicturesHook', visualizer=visualizer)
    config.default_hooks.record.generations = [config.train_cfg.max_epochs]
    return config, partial(_content, config)


def _check_probe(config: Config) -> None:
    least = {'neighbours': 1, 'image_size': 1, 'loader.batch_size': 1, 'loader.num_workers': 0}
    check_whole_numbers(config, least)
    if not 0 < config.temperature < math.inf:
        raise UserError(f'temperature is {config.temperature}: it must be a number above 0.')


def training_images(config: Config) -> list[int]:
    """The number of training images that contain each class, in class order; ``config`` is one
    that :func:`prepare_without_backbone` returned."""
    train, _ = _splits(config)
    return count_images(train, _classes(config), config.task)


def _hand_over(config: Config) -> dict[str, Any]:
    """Set the ``init_cfg`` of each module that the backbone file fills, after building it on the
    meta device to check that its tensors match. Return the provenance of the file."""
    if not config.backbone_file:
        raise UserError(
            'No backbone is given: add --cfg-options backbone_file=FILE, a file that '
            'tools/export.py or tools/import_backbone.py wrote.'
        )
    weights = load_backbone_file(config.backbone_file)
    check_handoff(config.model, weights.provenance)
    given: list[str] = []
    for key, part in backbone_parts(config.model).items():
        scope = MODELS.switch_scope_and_registry(config.default_scope)
        try:
            with scope as models, torch.device('meta'):
                module = models.build(part)
        except Exception as error:  # a network may raise anything
            raise UserError(
                f'{key} cannot be built with these settings ({in_one_line(error)}): correct them.'
            ) from error
        layers = top_level(module.state_dict())
        take_layers(weights, module, layers)
        part.init_cfg = dict(
            type='ExportedBackbone', checkpoint=config.backbone_file, layers=layers
        )
        given += layers
    if sorted(given) != sorted(top_level(weights)):
        raise UserError(
            f'The backbone file has the layers {", ".join(top_level(weights))}, but the model '
            f'takes {", ".join(given)}: each must be used once. Give another backbone_file.'
        )
    return weights.provenance


def _fill_loaders(config: Config, world_size: int) -> None:
    """Check the settings and the data; set the paths, lists and image sizes of the data sets."""
    config.train_dataloader.batch_size = batch_per_process(config, world_size)
    check_whole_numbers(config, _SIZES)
    _fill_lists(config)
    root = Path(config.data_root)
    if not root.is_dir():
        raise UserError(
            f'No data root {root}: add the option data_root=DIR, the VOCdevkit folder that '
            'holds VOC2007 and VOC2012.'
        )
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.persistent_workers = loader.num_workers > 0
    train, val = _datasets(config)
    counts = _check_splits(config)
    trained, tested = sum(counts[: len(train)]), sum(counts[len(train) :])
    check_counts(root, trained, tested, config.batch_size, world_size)
    for dataset in (*train, *val):
        dataset.data_root = config.data_root
        for step in dataset.pipeline:
            _fill_sizes(config, step)


def _fill_sizes(config: Config, step: ConfigDict) -> None:
    """Set the sizes of one step of a pipeline."""
    for name, setting in _SIZES_OF_STEPS.get(step.type, {}).items():
        if (size := config.get(setting)) is None:
            continue
        own = step.get(name, size)
        if 'identity' not in config and json.dumps(own) != json.dumps(size):  # (2, 3) is [2, 3]
            raise UserError(
                f'A {step.type} has {name}={own}, which would have no effect: leave it out; set '
                f'{setting}, which is {size}.'
            )
        step[name] = size


def _fill_lists(config: Config) -> None:
    """Replace VOC's image lists by the user's ``train_list`` and ``val_list``."""
    folders = {
        'detection': dict(sub_data_root=''),
        'segmentation': dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    }
    for split in ('train', 'val'):
        dataset = config[f'{split}_dataloader'].dataset
        if own := config[f'{split}_list']:
            if not isinstance(own, str):
                raise UserError(
                    f'{split}_list is {own}: give the path of one list, which names all images.'
                )
            if 'datasets' in dataset:
                dataset.datasets = dataset.datasets[:1]
                dataset = dataset.datasets[0]
            dataset.update(ann_file=own, data_prefix=folders[config.task])


def _fill_schedule(config: Config) -> None:
    epochs = config.train_cfg.max_epochs
    config.param_scheduler = config.param_scheduler or []
    for index, scheduler in enumerate(config.param_scheduler):
        if not scheduler.get('by_epoch', True):
            continue
        if 'end' in scheduler and index == len(config.param_scheduler) - 1:
            scheduler.end = epochs  # one before it is a warm-up and keeps its length
        if late := [m for m in scheduler.get('milestones', ()) if m >= epochs]:
            raise UserError(
                f'The learning rate would fall after epoch {late[0]}, but train_cfg.max_epochs is '
                f'{epochs}: set param_scheduler.{index}.milestones too, or param_scheduler=[] for '
                'a constant rate.'
            )


def _fill_detection(config: Config) -> None:
    classes = _classes(config)
    _head(config, 'roi_head.bbox_head').num_classes = len(classes)
    for dataset in chain(*_datasets(config)):
        dataset.metainfo = dict(classes=classes)
        if config.classes and dataset.type == 'VOCDataset':
            # VOCDataset in a folder named VOC2007 or VOC2012 makes VOCMetric use VOC's names.
            dataset.type = 'XMLDataset'
        if config.drop_invalid_boxes:
            # mmdet ignores boxes below this size only outside test mode; nothing else changes.
            dataset.update(filter_cfg=dict(bbox_min_size=1), test_mode=False)


def _fill_segmentation(config: Config, world_size: int, gpus: bool) -> None:
    classes = _classes(config)
    _head(config, 'decode_head').num_classes = len(classes)
    auxiliary = config.model.get('auxiliary_head') or []
    for head in auxiliary if isinstance(auxiliary, list | tuple) else [auxiliary]:
        head.num_classes = len(classes)
    if config.classes:
        for dataset in chain(*_datasets(config)):  # no classes of its own
            dataset.update(type='BaseSegDataset', metainfo=dict(classes=classes))
    if config.val_dataloader.batch_size != 1:
        raise UserError(
            'val_dataloader.batch_size must be 1: mmseg cannot test a batch of images of different '
            'sizes.'
        )
    config.model.data_preprocessor.size = config.crop_size
    config.default_hooks.cudnn = dict(type='CropsOfOneSizeHook')
    if world_size > 1 and gpus:
        config.sync_bn = 'torch'  # batch statistics over all GPUs
        return
    if world_size > 1:
        config.default_hooks.buffers = dict(type='SyncBuffersHook')  # averages at an epoch's end
    if config.train_dataloader.batch_size == config.micro_batches:
        raise UserError(
            'DeepLabv3 normalises pooled features over the images of a process, and here each '
            'process has only one at a time: use fewer processes, a larger batch_size or fewer '
            'micro_batches.'
        )


def _head(config: Config, name: str) -> ConfigDict:
    """The settings of the head ``name`` of the model."""
    head = dict(walk(config.model)).get(name)
    if not isinstance(head, dict):
        raise UserError(
            f'A {config.model.get("type")} has no {name}: set a model with one, such as FasterRCNN '
            'for detection or EncoderDecoder for segmentation.'
        )
    return head


def _classes(config: Config) -> tuple[str, ...]:
    """The class names that the config sets, or those of its data set type."""
    names = config.classes
    if names is None:
        _, (first, *_) = _datasets(config)
        names = metainfo(_LIBRARIES[config.task], first.type)['classes']
    elif not isinstance(names, list | tuple) or not 0 < len(names) == len(
        {name for name in names if isinstance(name, str)}
    ):
        raise UserError(
            f'classes is {names!r}: give a list of different names, such as '
            "\"classes=['cat', 'dog']\"."
        )
    return tuple(names)


def _check_splits(config: Config) -> list[int]:
    """Check all training and test files; return the number of images in each list."""
    train, test = _splits(config)
    classes = _classes(config)
    if config.task == 'detection':
        return check_detection(train, test, classes, config.drop_invalid_boxes)
    palette = () if config.classes else metainfo('mmseg', 'PascalVOCDataset')['palette']
    return check_segmentation(train, test, classes, palette)


def _content(config: Config) -> dict[str, list[str]]:
    """For each list of ``train`` and ``val``, a hash of its files' names and bytes."""
    root, suffix = Path(config.data_root), '.xml' if config.task == 'detection' else '.png'

    def below(folder: Path) -> str | Path:
        if folder.is_relative_to(root):
            return folder.relative_to(root)
        return os.path.relpath(folder.resolve(), root.resolve())  # elsewhere

    def content(split: Split) -> str:
        files = [
            f'{below(folder)}/{name}{end}'
            for name in list_from_file(split.list_file)
            for folder, end in ((split.images, '.jpg'), (split.labels, suffix))
        ]
        return content_sha256(split.list_file.resolve(), root, files)

    train, test = _splits(config)
    return {'train': [*map(content, train)], 'val': [*map(content, test)]}


def _datasets(config: Config) -> Iterator[list[ConfigDict]]:
    """Yield the training data sets, then the test data sets; each list of images has one."""
    for loader in (config.train_dataloader, config.val_dataloader):
        yield loader.dataset.get('datasets') or [loader.dataset]


def _below(root: Path, dataset: ConfigDict, key: str) -> Path:
    value = dict(walk(dataset)).get(key)
    if not isinstance(value, str):
        raise UserError(f'A {dataset.type} has {key}={value}: give a path below data_root.')
    return root / value


def _splits(config: Config) -> Iterator[list[Split]]:
    """Yield the training splits, then the test splits, one for each list of images."""
    root = Path(config.data_root)

    def split(dataset: ConfigDict) -> Split:
        if not isinstance(dataset.get('pipeline'), list | tuple):
            raise UserError(
                f'A {dataset.type} has pipeline={dataset.get("pipeline")}: give a list of steps. '
                'Wrappers such as RepeatDataset cannot be used; set train_cfg.max_epochs.'
            )
        names = _below(root, dataset, 'ann_file')
        if config.task == 'segmentation':
            keys = 'data_prefix.img_path', 'data_prefix.seg_map_path'
            return Split(names, *(_below(root, dataset, key) for key in keys))
        # mmdet's XMLDataset has these folder names
        year = _below(root, dataset, 'data_prefix.sub_data_root')
        return Split(names, year / 'JPEGImages', year / 'Annotations')

    for datasets in _datasets(config):
        yield [*map(split, datasets)]
