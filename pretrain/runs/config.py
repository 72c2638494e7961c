"""Read configs, override their settings, and check the settings that both stages share."""

import ast
import difflib
import importlib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn, zeros

from pretrain.runs.errors import UserError, in_one_line, number_of

_PACKAGE = Path(__file__).resolve().parents[1]
# Settings of mmengine's Runner that are not arguments of its constructor.
_OF_THE_RUNNER = 'runner_type', 'custom_imports', 'sync_bn', 'find_unused_parameters'
_OF_THE_RUNNER += 'model_wrapper_cfg', 'activation_checkpointing', 'efficient_conv_bn_eval'


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a config file and override some of its keys.

    Args:
        path: the file. If it does not exist in the working directory, the suite's own is used:
            ``configs/...`` works in any folder, from the repository and from an installation.
        options: ``key=value`` strings. A key is a dotted path that the config already has
            (``train_dataloader.num_workers``, ``algorithm.generations``), and a value is a Python
            literal or a plain string.

    Returns:
        The config, without what the file imports and its own variables, whose names begin with an
        underscore.

    Raises:
        UserError: if the file cannot be read, a key does not exist (the error names the nearest
            one that does), or a value has the wrong type.

    Example:
        >>> load_config('configs/pretrain/r152_sd.py', ['batch_size=512']).batch_size
        512
    """
    places = Path(path), *_installed(path)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        there = {other.name for place in places for other in place.parent.glob('*.py')}
        near = difflib.get_close_matches(Path(path).name, sorted(there), n=1)
        hint = f'did you mean {Path(path).with_name(*near)}?' if near else 'see configs/.'
        raise UserError(f'No config {path}: {hint}')
    try:
        config = Config.fromfile(str(file))
    except Exception as error:  # a config is a Python program and may raise anything
        raise UserError(f'{path} cannot be read ({in_one_line(error)}): correct it.') from error
    settings = {
        name: value
        for name, value in config.to_dict().items()
        if name[0] != '_' and not callable(value)  # such as an imported class
    }
    # Each checkpoint stores the config as text, and formatting that text takes over a second.
    text, file = config.text, config.filename
    config = Config(settings, text, file, config.env_variables, format_python_code=False)
    if 'stage' not in config:
        raise UserError(f'{path} has no stage: inherit from a config of this suite, in configs/.')
    # mmengine can override an item of a list only if the item is a dict.
    known = {
        key: value
        for key, value in walk(config.to_dict())
        if isinstance(value, dict) or not key.rpartition('.')[2].isdigit()
    }
    overrides = {}
    for option in options:
        key, equals, text = option.partition('=')
        if not equals:
            raise UserError(f'Option {option}: write key=value.')
        if key not in known:
            near = _nearest_keys(re.sub(r'\.\d+$', '', key), known)
            raise UserError(f'{path} has no key {key}: did you mean {near}?')
        overrides[key] = _parse_option(key, text, known[key])
    if 'identity' in config:
        _check_overrides_of_a_run(config, overrides)
    config.merge_from_dict(overrides)
    return config


def _check_overrides_of_a_run(config: Config, overrides: Mapping[str, Any]) -> None:
    """Raise a UserError if options could not change a run's own copy of its config."""
    replaced = _UNUSED | stage_of(config).REPLACED
    for key, value in overrides.items():
        for whole in accumulate(key.split('.'), '{}.{}'.format):
            if instead := _instead(whole, replaced):
                raise UserError(
                    f'{key}={value} would have no effect on {config.filename}, the config of a '
                    f'run: leave it out; {instead}.'
                )
    seed, fixed = overrides.get('randomness.seed'), config.get('data_seed')
    if seed is not None and fixed not in (None, seed) and 'data_seed' not in overrides:
        raise UserError(
            f'{config.filename} is the config of a run, with data_seed={fixed}, so the images '
            'would come in the order of that run: use the config that the run was started with, '
            f'or add the option data_seed={seed}.'
        )


def _installed(path: str | Path) -> tuple[Path, Path]:
    """Where this suite's own file ``configs/...`` may be: in the installed package, or in the
    repository, beside the package."""
    return _PACKAGE / path, _PACKAGE.parent / path


def check_names(config: Config, complete: str, replaced: Mapping[str, str]) -> None:
    """Check the names of the settings of a config that is not yet prepared.

    Args:
        config: the config.
        complete: this suite's config ``configs/...`` that has all of its settings of this kind.
        replaced: settings that the stage replaces by others (patterns of dotted keys), and what to
            do instead of setting them.

    Raises:
        UserError: if a top-level setting is neither the suite's nor mmengine's, or a setting would
            have no effect.
    """
    replaced = _UNUSED | replaced
    suite = _settings_of(complete)
    known = {key.partition('.')[0] for key in suite} | {*replaced, *_OF_THE_RUNNER}
    known |= inspect.signature(Runner).parameters.keys()
    of_a_run = 'identity' in config
    if of_a_run:  # or inherits from a run's own copy
        known |= {'identity', 'accepted_changes'}
    for name in config:
        if name not in known:
            near = _nearest_keys(name, [key for key in suite if not _instead(key, replaced)])
            raise UserError(
                f'{config.filename} sets {name}, which nothing reads: did you mean {near}? (Begin '
                'the name of a variable of your own with an underscore.)'
            )
    if of_a_run:  # it has what the stage derived from its settings
        return
    for key, value in walk(config.to_dict()):
        if value and (instead := _instead(key, replaced)):
            raise UserError(
                f'{key} is {value}, which would have no effect: leave it out; {instead}.'
            )


@cache
def _settings_of(path: str) -> list[str]:
    file = next(filter(Path.is_file, _installed(path)))  # the package's own comes first
    return [key for key, _ in walk(Config.fromfile(str(file)).to_dict()) if key[0] != '_']


def _instead(key: str, replaced: Mapping[str, str]) -> str | None:
    """What to do instead of setting ``key``, if one of the patterns in ``replaced`` matches it."""
    return next((text for name, text in replaced.items() if fnmatchcase(key, name)), None)


def stage_of(config: Config) -> ModuleType:
    """The module of the config's stage: ``pretrain.build`` or ``downstream.build``.

    It has ``prepare(config, world_size, elsewhere)``; optionally ``install()``, which a process
    calls before it builds from a prepared config; and, if its runs can share their first epochs,
    the rule ``may_differ`` of :func:`pretrain.runs.resume.check_resume`.
    """
    return importlib.import_module(f'{config.stage}.build')


def prepare(config: Config, world_size: int, elsewhere: bool = False) -> Config:
    """Have the config's stage check it and fill it in for a run of ``world_size`` processes;
    ``elsewhere`` says that they run on another machine, such as a cluster's node."""
    return stage_of(config).prepare(config, world_size, elsewhere)


def walk(node: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each item in nested dicts and lists, also containers.

    Example:
        >>> dict(walk({'model': {'mean': [1, 2]}}))
        {'model': {'mean': [1, 2]}, 'model.mean': [1, 2], 'model.mean.0': 1, 'model.mean.1': 2}
    """
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        key = f'{prefix}{name}'
        yield key, value
        if isinstance(value, dict | list | tuple):
            yield from walk(value, f'{key}.')


def _nearest_keys(key: str, known: Iterable[str]) -> str:
    """The known keys that end most like ``key``: ``lr`` finds ``optim_wrapper.optimizer.lr``."""
    *parents, last = key.split('.')
    known = [name for name in known if name.split('.')[-1] == last] or known
    ends = {name: '.'.join(name.split('.')[-len(parents) - 1 :]) for name in known}
    (nearest,) = difflib.get_close_matches(key, {*ends.values()}, n=1, cutoff=0.0)
    return ' or '.join([name for name, end in ends.items() if end == nearest][:3])


def literal(text: str) -> Any:
    """Parse ``text`` from a command line: a Python literal, true, false or a plain string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {'true': True, 'false': False}.get(text.lower(), text)


# By the type of a config's value: the types of its replacements, and what messages call them.
_REPLACEMENTS = {
    NoneType: ((str, bool, int, float, list, tuple, NoneType), 'a value other than a dict'),
    str: ((str, list, tuple, NoneType), 'a string'),
    bool: ((bool,), 'True or False'),
    int: ((int, float, list, tuple), 'a number'),
    float: ((int, float), 'a number'),
    list: ((list, tuple, NoneType), 'a list'),
    tuple: ((list, tuple, NoneType), 'a list'),
    dict: ((dict, NoneType), 'a dict'),
}


def _parse_option(key: str, text: str, present: Any) -> Any:
    """Parse the ``text`` of an option; UserError if it may not replace the ``present`` value."""
    value = literal(text)
    if isinstance(present, str) and isinstance(value, bool | int | float):
        return text  # such as a folder named 2012
    kinds, name = _REPLACEMENTS[type(present)]
    # None removes a nested part in mmengine, but not a top-level setting or an item of a list.
    needed = '.' not in key or key.rpartition('.')[2].isdigit()
    missing = value is None and isinstance(present, dict) and needed
    wrong = isinstance(value, bool) and bool not in kinds
    if missing or wrong or not isinstance(value, kinds):
        raise UserError(f'Option {key}={text}: give {name}, such as {present}.')
    return value


# Parts that a run needs if its config has them; an option could set one to None.
PARTS = 'model', 'model.network', 'model.backbone', 'model.data_preprocessor', 'model.decode_head'
PARTS += 'model.roi_head', 'model.roi_head.bbox_head'
PARTS += 'optim_wrapper.optimizer', 'default_hooks.logger'
PARTS += tuple(f'default_hooks.{name}' for name in ('runtime_info', 'checkpoint', 'record'))
PARTS += tuple(
    f'{s}_dataloader.{name}' for s in ('train', 'val') for name in ('dataset', 'sampler')
)
# Settings of OpenMMLab that have no effect in either stage, and what has.
_UNUSED = {
    'load_from': 'start the run with --start-from',
    'resume': 'start the run with --resume',
    'train_cfg.micro_batches': 'set micro_batches',
    'train_dataloader.batch_size': 'set batch_size, the number over all processes',
    'optim_wrapper.accumulative_counts': 'set micro_batches',
    'compile': 'in pretraining, set model.compiled=True',
    'model_wrapper_cfg': 'set find_unused_parameters',
}
# Settings that must be 0 or more.
NOT_NEGATIVE = 'optim_wrapper.optimizer.lr', 'default_hooks.checkpoint.minutes'
# Settings that must be whole numbers, and their least values.
WHOLE_NUMBERS = {
    'batch_size': 1,
    'micro_batches': 1,
    'randomness.seed': 0,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'train_cfg.val_interval': 1,
    'default_hooks.logger.interval': 1,
}


def check_whole_numbers(config: Config, least: Mapping[str, int]) -> None:
    """Raise a UserError if a setting is not a whole number from its value in ``least`` (by dotted
    key) to 2^32 - 1. Settings that the config lacks are skipped."""
    values = dict(walk(config.to_dict()))
    for key, at_least in least.items():
        value = values.get(key, at_least)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise UserError(f'{key} is {value}: it must be a whole number of at least {at_least}.')
        if value >= 2**32:  # NumPy accepts no larger seed
            raise UserError(f'{key} is {value}: it must be below 2^32.')


def check_settings(config: Config) -> None:
    """Raise a UserError if one of ``PARTS`` was removed, a number is out of range, or the optimizer
    cannot be built (not checked if it has a constructor)."""
    values = dict(walk(config.to_dict()))
    for key in PARTS:
        if key in values and not isinstance(values[key], dict):
            raise UserError(f'{key} is {values[key]}, but every run needs it: do not override it.')
    for key in NOT_NEGATIVE:
        value = values.get(key, 0)
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise UserError(f'{key} is {value}: it must be a finite number of at least 0.')
    check_whole_numbers(config, WHOLE_NUMBERS)
    if 'constructor' in config.optim_wrapper:
        return  # it may add settings for each layer that the optimizer lacks here
    optimizer = dict(config.optim_wrapper.optimizer, params=[nn.Parameter(zeros(1, 1))])
    try:
        with OPTIMIZERS.switch_scope_and_registry(config.default_scope) as optimizers:
            optimizers.build(optimizer)
    except Exception as error:  # an optimizer may raise anything
        raise UserError(
            f'The optimizer {config.optim_wrapper.optimizer.get("type")} cannot be built with '
            f'these settings ({in_one_line(error)}): correct them, or replace all of them in a '
            'config with optim_wrapper=dict(optimizer=dict(_delete_=True, type=..., lr=...)).'
        ) from error


def batch_per_process(config: Config, world_size: int) -> int:
    """The images of one process in a batch of ``batch_size`` images over all processes.

    Raises:
        UserError: if ``batch_size`` is not a multiple of ``world_size * micro_batches``.
    """
    count = config.micro_batches
    if config.batch_size % (world_size * count):
        of_each = f' with {count} micro-batches each' if count > 1 else ''
        raise UserError(
            f'batch_size={config.batch_size} cannot be divided evenly among '
            f'{number_of(world_size, "processes")}{of_each}: choose a multiple of '
            f'{world_size * count}.'
        )
    return config.batch_size // world_size


def check_counts(root: Path, train: int, val: int, batch_size: int, processes: int) -> None:
    """Raise a UserError if ``train`` images are fewer than one batch over all processes, or ``val``
    images fewer than ``processes``."""
    if train < batch_size:
        raise UserError(
            f'{root} has {number_of(train, "training images")}, fewer than '
            f'batch_size={batch_size}: lower batch_size.'
        )
    if val < processes:
        raise UserError(
            f'{root} has {number_of(val, "test images")} for {processes} processes: start at most '
            f'{number_of(val, "processes")}.'
        )
