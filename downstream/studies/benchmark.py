"""Compare the speed of fine-tuning with that of plain mmdet and mmseg."""

import copy
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from downstream.build import prepare
from downstream.builtin import write_vocdevkit
from pretrain.models.resnet import build_resnet
from pretrain.runs.backbone_file import write_backbone_file
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.studies.benchmark import STRETCH, fitting_batch, median_of_turns, row, run_seconds


def finetune_rows(path: Path, options: Sequence[str], rounds: int) -> list[dict]:
    """Time a fine-tuning run of this suite and :func:`library_run` on synthetic images of VOC's
    size.

    Args:
        path: a detection or segmentation config.
        options: ``key=value`` overrides. By default the backbone has random weights, and the batch
            size is one that fits this machine.
        rounds: number of timed stretches, of ``STRETCH`` iterations each, in a run.

    Returns:
        Rows of the benchmark table: the ratio of the times, both times and the images per second.

    Raises:
        UserError: if the config trains neither a detector nor a segmenter.
    """
    config = load_config(path, options)
    if config.task not in ('detection', 'segmentation'):
        raise UserError(
            f'{path} is not a fine-tuning config: give one of a detector or segmenter, as in '
            'configs/downstream/.'
        )
    width, height = config.get('crop_size') or config.image_scale
    least = 2 if config.task == 'segmentation' else 1  # DeepLabv3 needs 2 for batch norm
    options = [f'batch_size={fitting_batch(config.batch_size, width * height, least)}', *options]
    batch = load_config(path, options).batch_size
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / 'VOCdevkit'
        write_vocdevkit(root, trainval=(rounds + 1) * STRETCH * batch, test=1, size=500)
        options.append(f'data_root={root}')
        if not config.backbone_file:
            options.append(f'backbone_file={_random_backbone(config, Path(scratch))}')
        ours = prepare(load_config(path, options))
        runs = {'run': ours, 'library run': library_run(ours)}
        median = median_of_turns(lambda: {n: run_seconds(c, rounds) for n, c in runs.items()})
    title = f'{Path(path).stem}, batch {batch}'
    ratio = median['run'] / median['library run']  # the library run is float32
    goal = 0.7 if ours.precision == 'bf16' else 1.0
    return [
        row(f'{title}: run / library run', ratio, at_most=goal),
        *(row(f'{title}: {name}', 1000 * value, 'ms') for name, value in median.items()),
        row(f'{title}: run', batch / median['run'], 'images/s'),
    ]


def library_run(ours: Config) -> Config:
    """A prepared fine-tuning config as mmdet's and mmseg's ``tools/train.py`` would run it: in
    float32 with mmengine's Runner, epoch loop, sampler, hooks and log. The model, its initial
    weights, the data pipeline and the optimizer stay the same."""
    config = copy.deepcopy(ours)
    config.runner_type = 'Runner'
    config.train_cfg = dict(by_epoch=True, max_epochs=ours.train_cfg.max_epochs)
    config.train_dataloader.sampler.type = 'DefaultSampler'
    config.train_dataloader.dataset = ours.train_dataloader.dataset.dataset
    # As in default_runtime.py of mmdet and mmseg; mmengine adds its other default hooks.
    config.default_hooks = dict(logger=dict(type='LoggerHook', interval=50))
    config.log_processor = dict(type='LogProcessor', window_size=50)
    config.env_cfg.cudnn_benchmark = ours.task == 'segmentation'
    return config


def _random_backbone(config: Config, folder: Path) -> Path:
    depth, expected = config.model.backbone.depth, config.model.data_preprocessor
    weights = OrderedDict(build_resnet(depth, 1).state_dict())
    del weights['fc.weight'], weights['fc.bias']
    facts = dict(arch='ResNet', depth=depth, stem='v1', channel_order='RGB')
    facts |= {
        'style': config.model.backbone.get('style', 'pytorch'),
        'mean': expected.mean,
        'std': expected.std,
    }
    write_backbone_file(folder / 'backbone.pth', weights, Path(config.filename), facts)
    return folder / 'backbone.pth'
