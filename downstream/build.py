"""From a detection or segmentation config to what mmengine's Runner takes (Section 4.3).

The only module that knows mmdet and mmseg.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from downstream.backbone import backbone_parts, check_handoff, select, top_level
from downstream.mmcv_ops import install
from pretrain.config import batch_per_process
from pretrain.errors import UserError
from pretrain.export import load_backbone_file

_LIBRARIES = {'detection': 'mmdet', 'segmentation': 'mmseg'}


def prepare(config: Config, world_size: int = 1, device: str = 'cpu') -> Config:
    """Check the data and the backbone, and derive every part from the few settings of a config.

    ``backbone_file`` fills the model; ``data_root`` (a VOCdevkit folder), ``batch_size``,
    ``image_scale`` and ``crop_size`` reach the loaders, ``train_cfg.max_epochs`` the schedule.
    ``identity`` is added: what must not change while the run lasts.

    Args:
        config: as :func:`pretrain.config.load_config` reads it; it is not changed.
        world_size: number of processes.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        UserError: if the data, the backbone file or a setting cannot work.
    """
    install()
    config = copy.deepcopy(config)
    config.default_scope = _LIBRARIES[config.task]
    _fill_loaders(config, world_size)
    config.optim_wrapper.accumulative_counts = config.micro_batches
    # Images of many sizes would have cuDNN search anew for each.
    config.env_cfg.cudnn_benchmark = False
    for scheduler in config.param_scheduler:
        if 'end' in scheduler:
            scheduler.end = config.train_cfg.max_epochs
    if config.task == 'segmentation':
        _fill_segmentation(config, world_size, device)
    provenance = _hand_over(config)
    config.identity = dict(
        task=config.task,
        seed=config.randomness.seed,
        batch_size=config.batch_size,
        micro_batches=config.micro_batches,
        image_scale=config.image_scale,
        crop_size=config.get('crop_size'),
        backbone=provenance,
        optimizer=config.optim_wrapper.optimizer.to_dict(),
        max_epochs=config.train_cfg.max_epochs,
        param_scheduler=config.to_dict()['param_scheduler'],
    )
    return config


def check_data(config: Config, world_size: int = 1) -> None:
    """Those checks of :func:`prepare` that need no backbone, for a run that is still far off."""
    _fill_loaders(copy.deepcopy(config), world_size)


def _hand_over(config: Config) -> dict[str, Any]:
    """Give every part its share of the backbone file, having tried it on the meta device."""
    if not config.backbone_file:
        raise UserError(
            'No backbone is given: add --cfg-options backbone_file=FILE, a file that '
            'tools/export_backbone.py wrote.'
        )
    weights = load_backbone_file(config.backbone_file)
    check_handoff(config.model, weights.provenance)
    given: list[str] = []
    for part in backbone_parts(config.model).values():
        scope = MODELS.switch_scope_and_registry(config.default_scope)
        with scope as models, torch.device('meta'):
            module = models.build(part)
        layers = top_level(module.state_dict())
        select(weights, module, layers)
        part.init_cfg = dict(
            type='ExportedBackbone', checkpoint=config.backbone_file, layers=layers
        )
        given += layers
    if sorted(given) != sorted(top_level(weights)):
        raise UserError(
            f'The backbone file has the layers {", ".join(top_level(weights))}, the model takes '
            f'{", ".join(given)}: each must be used once.'
        )
    return weights.provenance


def _fill_loaders(config: Config, world_size: int) -> None:
    config.train_dataloader.batch_size = batch_per_process(config, world_size, config.micro_batches)
    root = Path(config.data_root)
    if not root.is_dir():
        raise UserError(
            f'No data root {root}: add --cfg-options data_root=DIR, the VOCdevkit folder that '
            'holds VOC2007 and VOC2012.'
        )
    sizes = {
        'Resize': ('scale', config.image_scale),
        'RandomResize': ('scale', config.image_scale),
        'RandomCrop': ('crop_size', config.get('crop_size')),
    }
    for loader in (config.train_dataloader, config.val_dataloader):
        images = 0
        for dataset in loader.dataset.get('datasets', [loader.dataset]):
            dataset.data_root = config.data_root
            images += _check_split(root, dataset)
            for step in dataset.pipeline:
                if step.type in sizes:
                    key, value = sizes[step.type]
                    step[key] = value
        if loader is config.train_dataloader and images < config.batch_size:
            raise UserError(
                f'{root} has {images} training images, less than batch_size='
                f'{config.batch_size}: lower batch_size.'
            )


def _fill_segmentation(config: Config, world_size: int, device: str) -> None:
    config.model.data_preprocessor.size = config.crop_size
    if world_size > 1 and device == 'cuda':
        config.sync_bn = 'torch'  # statistics over the whole batch, whatever the number of GPUs
    elif config.train_dataloader.batch_size == 1:
        raise UserError(
            'DeepLabv3 normalises pooled features over the images of a process and here each has '
            'one: use fewer processes or a larger batch_size, or fewer micro_batches.'
        )


def _check_split(root: Path, dataset: ConfigDict) -> int:
    """Count the images of a split, whose files must all be there."""
    split = root / dataset.ann_file
    if not split.is_file():
        raise UserError(
            f'No split file {split}: data_root must name a VOCdevkit folder with the '
            'ImageSets of its years unpacked.'
        )
    names = split.read_text().splitlines()
    if not names:
        raise UserError(f'{split} is empty: it must name one image a line.')
    if dataset.type == 'VOCDataset':
        year = root / dataset.data_prefix.sub_data_root
        folders = {year / 'JPEGImages': '.jpg', year / 'Annotations': '.xml'}
    else:
        prefix = dataset.data_prefix
        folders = {root / prefix.img_path: '.jpg', root / prefix.seg_map_path: '.png'}
    for folder, suffix in folders.items():
        present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        missing = [name + suffix for name in names if name + suffix not in present]
        if missing:
            raise UserError(
                f'{split} names {len(names)} images, but {folder} lacks {len(missing)} files '
                f'({missing[0]}, ...): unpack it again.'
            )
    return len(names)
