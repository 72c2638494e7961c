"""From a classification config to what mmengine's Runner takes."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import pretrain.classifier
import pretrain.datasets.image_folder
import pretrain.hooks
import pretrain.losses
import pretrain.metrics
import pretrain.models  # noqa: F401
from pretrain.config import batch_per_process
from pretrain.datasets.image_folder import check_image_folder
from pretrain.errors import UserError
from pretrain.schedule import boundaries, cosine_restarts


def prepare(config: Config, world_size: int = 1) -> Config:
    """Check the data and derive every part from the few settings that a config states.

    ``algorithm`` becomes the loss, the learning-rate schedule and the snapshot hook, so that BL,
    SE and SD differ in it alone; ``data_root``, ``image_size``, ``batch_size`` and the seed reach
    the loaders. ``identity`` is added: what must not change while the run lasts.

    Args:
        config: as :func:`pretrain.config.load_config` reads it; it is not changed.
        world_size: number of processes.

    Raises:
        UserError: if the data or a setting cannot work.
    """
    config = copy.deepcopy(config)
    algorithm = config.algorithm
    epochs = boundaries(algorithm.generations)[-1]
    batch_size = batch_per_process(config, world_size)
    num_classes = check_image_folder(Path(str(config.data_root)), config.batch_size)
    if config.model.network.num_classes != num_classes:
        raise UserError(
            f'{config.data_root} holds {num_classes} classes, the model '
            f'{config.model.network.num_classes}: add '
            f'model.network.num_classes={num_classes} to --cfg-options.'
        )
    config.model.loss = dict(
        type='SnapshotDistillationLoss',
        teacher_weight=algorithm.teacher_weight,
        temperature=algorithm.temperature,
    )
    # An impossible setting is an error here and not in each process.
    with MODELS.switch_scope_and_registry('mmengine') as models, torch.device('meta'):
        models.build(config.model)
    config.train_cfg.max_epochs = epochs
    config.param_scheduler = cosine_restarts(algorithm.generations)
    config.custom_hooks.append(dict(type='SnapshotHook', generations=algorithm.generations))
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        loader.batch_size = batch_size
        loader.persistent_workers = loader.num_workers > 0
        loader.pin_memory = torch.cuda.is_available()
        loader.sampler.seed = config.randomness.seed
        loader.dataset.update(
            root=str(Path(config.data_root) / split),
            size=config.image_size,
            seed=config.randomness.seed,
        )
    config.identity = dict(
        task=config.task,
        seed=config.randomness.seed,
        batch_size=config.batch_size,
        image_size=config.image_size,
        crop_area=config.train_dataloader.dataset.crop_area,
        data_preprocessor=config.model.data_preprocessor.to_dict(),
        network=config.model.network.to_dict(),
        optimizer=config.optim_wrapper.optimizer.to_dict(),
        algorithm=algorithm.to_dict(),
    )
    return config
