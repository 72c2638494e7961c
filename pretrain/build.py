"""Turn a pretraining config into the config that mmengine's Runner is built from."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from torch import nn

# These imports register the classes that a config may name in mmengine's registries.
import pretrain.classifier
import pretrain.datasets
import pretrain.feature_losses
import pretrain.hooks
import pretrain.losses
import pretrain.metrics
import pretrain.models
import pretrain.net2net
import pretrain.runs.log
import pretrain.runs.record
import pretrain.runs.train_loop  # noqa: F401
from pretrain.algorithm_checks import (
    check_copies,
    check_epochs,
    check_method_names,
    mini_generations,
)
from pretrain.graph import THREADS_MAY_RUN
from pretrain.learning_rates import learning_rates
from pretrain.net2net import check_net2net
from pretrain.other_runs import check_other_run
from pretrain.runs.config import (
    batch_per_process,
    check_names,
    check_settings,
    check_whole_numbers,
)
from pretrain.runs.errors import UserError, in_one_line, number_of
from pretrain.runs.identity import identity_of
from pretrain.runs.precision import resolve_precision

# Left out of a run's identity: the path of the network that Net2Net starts from, the epochs to keep
NOT_IDENTITY = ('initial.checkpoint', 'keep_epochs')
# and the settings that `prepare` derives from others.
NOT_IDENTITY += ('model.loss', 'model.precision', 'train_cfg.max_epochs', 'train_cfg.micro_batches')
NOT_IDENTITY += ('model.features', 'model.fold_teacher', 'model.graph_batch', 'runner_type')
NOT_IDENTITY += ('cuda_graph', 'find_unused_parameters')
NOT_IDENTITY += tuple(f'default_hooks.{name}' for name in ('snapshot', 'ensemble', 'initial'))
NOT_IDENTITY += ('*_dataloader.batch_size', '*_dataloader.sampler.seed')
NOT_IDENTITY += tuple(f'*_dataloader.dataset.{name}' for name in ('seed', 'size', 'split', 'skip'))
FUSED = 'SGD', 'Adam', 'AdamW', 'Adagrad'  # torch's optimizers with the option `fused`
# By the type of the data set: a config with all settings.
COMPLETE = {
    'ClassFolder': 'configs/pretrain/r152_bl.py',
    'Cifar100': 'configs/pretrain/cifar100/resnet20_bl.py',
}
# Settings that `prepare` replaces, and what to do instead.
REPLACED = {
    'train_cfg.max_epochs': 'set epochs',
    'val_dataloader.batch_size': 'set batch_size',
    'param_scheduler': 'set algorithm.schedule and algorithm.rates',
    'model.loss': 'set algorithm.teacher_weight, algorithm.temperature and the like',
    'model.precision': 'set precision',
    '*_dataloader.dataset.root': 'set data_root',
    '*_dataloader.dataset.size': 'set image_size',
    'find_unused_parameters': 'it follows from algorithm.features',
}
TEACHING = 'taught_after', 'copy_every', 'lag', 'decay', 'fresh_student'
LOSS_SETTINGS = 'teacher_weight', 'temperature', 'label_weight', 'symmetric', 'confidence_penalty'

# These settings take effect before the first teacher: even the lengths of later generations, since
# mmengine restores the whole schedule from the checkpoint.
BEFORE_ANY_TEACHER = ('generations', 'confidence_penalty', 'features', 'copy_every', 'lag', 'decay')


def prepare(config: Config, world_size: int = 1, elsewhere: bool = False) -> Config:
    """Check the data and derive every part from the few settings that a config states.

    ``epochs`` and ``algorithm`` become the loss, the learning rates and the hooks; ``data_root``,
    ``batch_size`` and the seeds are passed to the loaders; ``identity`` holds what must not change
    during the run (:mod:`pretrain.runs.identity`).

    Args:
        config: from :func:`pretrain.runs.config.load_config`.
        world_size: number of processes.
        elsewhere: whether they run on another machine, such as a cluster's node.

    Returns:
        A complete copy of the config.

    Raises:
        UserError: if a setting is invalid, or the data or another run's checkpoint does not fit.
    """
    config = copy.deepcopy(config)
    check_settings(config)
    complete = COMPLETE.get(config.train_dataloader.dataset.type, COMPLETE['ClassFolder'])
    check_names(config, complete, REPLACED)
    check_method_names(config)
    algorithm = config.algorithm
    config.keep_epochs = config.keep_epochs or []
    algorithm.generations = mini_generations(
        config.epochs, algorithm.generations, whole=algorithm.fresh_student
    )
    if config.data_seed is None:
        config.data_seed = config.randomness.seed
    data = _fill_loaders(config, world_size)
    optimizer = config.optim_wrapper.optimizer
    optimizer.pop('fused', None)  # set if the config was prepared before
    precision = resolve_precision(config.precision, elsewhere)
    config.precision = config.model.precision = precision
    config.model.loss = dict(
        type='SnapshotDistillationLoss', **{key: algorithm[key] for key in LOSS_SETTINGS}
    )
    config.model.teacher_network = config.teacher.network or None
    config.model.features = algorithm.features or None
    config.model.fold_teacher = algorithm.copy_every is None
    config.model.graph_batch = _graph_batch(config, world_size)
    config.find_unused_parameters = bool(algorithm.features)  # each phase uses only some
    with MODELS.switch_scope_and_registry('mmengine'):
        _check_model(config)
        hashes = _check_other_runs(config)
    check_copies(algorithm.copy_every, algorithm.lag, algorithm.decay)
    if not (config.teacher.checkpoint or algorithm.copy_every):
        first = algorithm.generations[0]
        if algorithm.taught_after not in (0, first):
            raise UserError(
                f'algorithm.taught_after is {algorithm.taught_after}, but the first snapshot '
                f'teaches after epoch {first}: leave it at 0, or change algorithm.generations.'
            )
        algorithm.taught_after = first  # Eqn 4
    check_epochs(sum(algorithm.generations), algorithm.taught_after, config.keep_epochs)
    config.train_cfg.micro_batches = config.micro_batches
    config.train_cfg.max_epochs = sum(algorithm.generations)
    config.param_scheduler = learning_rates(
        algorithm.generations, algorithm.schedule, algorithm.rates
    )
    config.label = config.label or algorithm.name
    config.default_hooks.update(_hooks(config))
    facts = dict(world_size=world_size, data=data, **hashes)
    config.identity = identity_of(config, NOT_IDENTITY, **facts)
    if torch.cuda.is_available() and optimizer.type in FUSED:
        optimizer.fused = True  # a single kernel per update
    return config


def may_differ(epoch: int, theirs: dict, ours: dict, another_run: bool) -> list[str]:
    """The keys of the identity in which a run may differ from the checkpoint that it continues
    (Sections 3.3.2, 4.1).

    Runs that differ only in the teacher, such as SE and SD, share all epochs before either is
    taught. A run that branches off another one may use another ``data_seed``.

    Args:
        epoch: number of epochs begun in the checkpoint, a partial one included.
        theirs: the identity of the run that wrote the checkpoint.
        ours: the identity of the run that continues it.
        another_run: True if the run branches off another one, False if it resumes its own.
    """
    # `schedule` and `rates` act through `param_scheduler`, which is compared.
    keys = ['algorithm.name', 'algorithm.schedule', 'algorithm.rates']
    if another_run:
        keys.append('data_seed')
    algorithms = theirs['algorithm'], ours['algorithm']
    if epoch <= min(algorithm['taught_after'] for algorithm in algorithms):
        late = set().union(*algorithms).difference(BEFORE_ANY_TEACHER)
        keys += ['teacher', 'model.teacher_network', *(f'algorithm.{name}' for name in late)]
    return keys


def _fill_loaders(config: Config, world_size: int) -> dict[str, str]:
    """Check the data and fill in the loaders' settings. Returns a hash of each split's content."""
    batch_size = batch_per_process(config, world_size)
    check_whole_numbers(config, {'data_seed': 0, 'image_size': 1})
    name = config.train_dataloader.dataset.type
    dataset_class = DATASETS.get(str(name))
    if not hasattr(dataset_class, 'check'):
        raise UserError(
            f'train_dataloader.dataset.type is {name}, which is no data set for pretraining: '
            f'inherit from a config with {" or ".join(COMPLETE)}.'
        )
    root = Path(str(config.data_root))
    skip_unusable = config.get('skip_unusable', False)  # CIFAR-100's configs lack it
    checked = dataset_class.check(root, config.batch_size, world_size, skip_unusable)
    if checked.classes == 1:
        raise UserError(
            f'{config.data_root} holds a single class, so there is nothing to learn: put the '
            'images of each class into a folder of its own.'
        )
    if config.model.network.num_classes != checked.classes:
        raise UserError(
            f'{config.data_root} holds {number_of(checked.classes, "classes")}, but the model has '
            f'{config.model.network.num_classes}: add the option '
            f'model.network.num_classes={checked.classes}.'
        )
    folder = 'image_size' in config  # otherwise the data set holds its images on the device
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        if loader.num_workers and not folder and torch.cuda.is_available():
            raise UserError(
                f'{split}_dataloader.num_workers is {loader.num_workers}, but the images are on '
                'the GPU, which loader workers cannot use: set it to 0.'
            )
        loader.batch_size = batch_size
        loader.persistent_workers = loader.num_workers > 0
        # Without workers the batches may be on the device already, where they cannot be pinned.
        loader.pin_memory = torch.cuda.is_available() and loader.num_workers > 0
        loader.sampler.seed = config.data_seed
        loader.dataset.update(root=config.data_root, split=split, seed=config.data_seed)
        area = loader.dataset.get('crop_area')
        shares = area if isinstance(area, list | tuple) else ()
        numbers = len(shares) == 2 and all(isinstance(share, int | float) for share in shares)
        if area is not None and not (numbers and 0 < shares[0] <= shares[1] <= 1):
            raise UserError(
                f'{split}_dataloader.dataset.crop_area is {area}: give the smallest and the '
                'largest share of the image area, such as (0.08, 1.0).'
            )
        if folder:
            loader.dataset.update(size=config.image_size, skip=checked.skip)
    return checked.hash_content()


def _graph_batch(config: Config, world_size: int) -> int:
    """The number of images of a process's batch that runs as a CUDA graph, 0 for none. The
    gradients of micro-batches are summed, which a graph would overwrite."""
    wanted = config.cuda_graph and not config.model.compiled
    alone = world_size == 1 and not config.train_dataloader.num_workers
    possible = torch.cuda.is_available() and config.micro_batches == 1
    possible = possible and (alone or THREADS_MAY_RUN)
    return config.train_dataloader.batch_size if wanted and possible else 0


def _hooks(config: Config) -> dict[str, dict]:
    algorithm = config.algorithm
    in_turn = algorithm.teacher_weight > 0
    in_turn = in_turn and not (config.teacher.checkpoint or algorithm.copy_every)
    hooks = dict(
        record=dict(type='RunRecordHook', generations=algorithm.generations),
        snapshot=dict(
            type='SnapshotHook',
            generations=algorithm.generations,
            teacher_file=config.teacher.checkpoint,
            **{key: algorithm[key] for key in TEACHING},
            features=bool(algorithm.features),
            keep_epochs=config.keep_epochs,
            seed=config.randomness.seed,
        ),
        ensemble=dict(
            type='EnsembleHook',
            # No ensemble: the first snapshot has learnt features alone and does not classify.
            generations=1 if algorithm.features else len(algorithm.generations),
            # T^(k-1) is for snapshots that taught each other in turn: each is softer by T than its
            # teacher, unless T softens the student as well.
            temperature=algorithm.temperature if in_turn and not algorithm.symmetric else 1.0,
        ),
    )
    if config.initial.checkpoint:
        hooks['initial'] = dict(type='Net2NetHook', **config.initial, seed=config.randomness.seed)
    return hooks


def _check_model(config: Config) -> None:
    """Build the model on the meta device, so that an impossible setting fails here, once."""
    size = config.get('image_size', 32)  # CIFAR's
    with torch.device('meta'):
        model = _built(config.model, 'model')
        _try_images(model.student, config.train_dataloader.batch_size // config.micro_batches, size)
        if model.features:
            model.imitate(torch.empty(2, 3, size, size), torch.zeros(2, dtype=torch.long))
        if config.initial.checkpoint:
            check_net2net(_built(config.initial.network, 'initial.network'), model.student)


def _try_images(student: nn.Module, count: int, size: int) -> None:
    try:
        student.train().forward(torch.empty(count, 3, size, size))
    except NotImplementedError:  # an operator without a meta kernel
        return
    except (ValueError, RuntimeError, AssertionError) as error:
        if 'meta' in str(error):  # the network reads a value; meta tensors have none
            return
        raise UserError(
            f'The network cannot train on {number_of(count, "images")} of {size} x {size} pixels '
            f'at a time ({in_one_line(error)}): change the network, image_size, batch_size or '
            'micro_batches.'
        ) from error


def _built(settings: dict, name: str) -> nn.Module:
    try:
        return MODELS.build(settings)
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise UserError(
            f'{name} cannot be built ({in_one_line(error)}): correct its settings.'
        ) from error


def _check_other_runs(config: Config) -> dict[str, str | None]:
    """Check the teacher and the Net2Net source that other runs trained; return the hashes of their
    weights. Raises a UserError if one does not fit this run, or is missing but needed."""
    teacher, initial, algorithm = config.teacher, config.initial, config.algorithm
    if teacher.checkpoint and not (algorithm.teacher_weight > 0 or algorithm.features):
        raise UserError(
            'teacher.checkpoint is given, but algorithm.teacher_weight is 0: set it above 0, or '
            'leave the teacher out.'
        )
    if not teacher.checkpoint and (teacher.network or algorithm.features):
        raise UserError(
            'teacher.network and algorithm.features need teacher.checkpoint: give the checkpoint '
            'of a run that has trained the teacher.'
        )
    if algorithm.copy_every and not algorithm.teacher_weight > 0:
        raise UserError(
            'algorithm.copy_every is given, but algorithm.teacher_weight is 0: set it above 0.'
        )
    if teacher.checkpoint and algorithm.copy_every:
        raise UserError(
            'algorithm.copy_every makes copies of the student its teacher, but teacher.checkpoint '
            'is given too: leave one of them out.'
        )
    if initial.network and not initial.checkpoint:
        raise UserError(
            'initial.network needs initial.checkpoint: give a checkpoint of this network.'
        )
    others = {
        'teacher': (teacher, teacher.network or config.model.network, 'teacher.network'),
        'initial_weights': (initial, initial.network, 'initial.network'),
    }
    return {
        name: check_other_run(str(other.checkpoint), network, config, key)
        if other.checkpoint
        else None
        for name, (other, network, key) in others.items()
    }
