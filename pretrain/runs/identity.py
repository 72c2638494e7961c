"""The identity of a run: its settings and data. Checkpoints and records contain it."""

import json
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config import Config

from pretrain.runs.errors import Contents, UserError

FORMAT = 2  # of an identity, and of the checkpoints and records that contain one

# The identity of a run is its prepared config without the dotted keys that match these patterns;
# those settings do not change the result.
PLACES = 'work_dir', 'data_root', '*.data_root', '*.dataset.root', 'load_from', 'resume'
NAMES = 'label', 'paper', 'experiment_name', 'identity', 'accepted_changes', 'custom_imports'
LOGS = 'visualizer', 'vis_backends', 'log_level', 'log_processor'
LOGS += tuple(
    f'default_hooks.{name}' for name in ('runtime_info', 'timer', 'logger', 'checkpoint', 'record')
)
PROCESSES = 'launcher', 'env_cfg', '*.num_workers', '*.persistent_workers', '*.pin_memory'
PROCESSES += ('model_wrapper_cfg',)
LEFT_OUT = PLACES + NAMES + LOGS + PROCESSES

# Settings with another name in format 1, and their present names.
_FORMAT_1 = {
    'seed': 'randomness.seed',
    'dataset': 'train_dataloader.dataset',
    'data_preprocessor': 'model.data_preprocessor',
    'network': 'model.network',
    'compiled': 'model.compiled',
    'optimizer': 'optim_wrapper.optimizer',
    'max_epochs': 'train_cfg.max_epochs',
}

Differences = dict[str, tuple[Any, Any]]  # dotted key: their value and ours


def identity_of(config: Config, left_out: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The identity of a prepared run, as nested dicts and lists of JSON values.

    ``left_out`` extends ``LEFT_OUT`` by the stage's own patterns: its paths, and settings that it
    derives from others. ``facts`` are not in the config, such as the hash of the data.
    """
    patterns = (*LEFT_OUT, *left_out)

    def kept(node: Any, prefix: str) -> Any:
        if isinstance(node, dict):
            keys = {name: f'{prefix}{name}' for name in node}
            return {
                name: kept(node[name], f'{key}.')
                for name, key in keys.items()
                if not any(fnmatchcase(key, pattern) for pattern in patterns)
            }
        if isinstance(node, list | tuple):
            return [kept(value, f'{prefix}{index}.') for index, value in enumerate(node)]
        return node

    return json.loads(json.dumps(kept(config.to_dict(), '') | facts))


def differences(
    theirs: Any, ours: Any, may_differ: Sequence[str] = (), key: str = ''
) -> Differences:
    """Compare two identities. A missing value counts as None, a missing dict as empty.

    Keys in ``may_differ`` and below them are not compared. ``key`` is the dotted key of both in
    larger identities.

    Example:
        >>> differences({'model': {'depth': 18}, 'seed': 0}, {'model': {'depth': 50}, 'seed': 0})
        {'model.depth': (18, 50)}
    """
    if theirs == ours or covers(may_differ, key):
        return {}
    nested = [
        isinstance(x, list) and any(isinstance(y, dict | list) for y in x) for x in (theirs, ours)
    ]
    if all(nested) and len(theirs) == len(ours):
        theirs, ours = dict(enumerate(theirs)), dict(enumerate(ours))
    if not all(isinstance(value, dict | None) for value in (theirs, ours)):
        return {key: (theirs, ours)}
    theirs, ours, found = theirs or {}, ours or {}, {}
    for name in sorted(theirs.keys() | ours.keys()):
        below = f'{key}.{name}' if key else str(name)
        found |= differences(theirs.get(name), ours.get(name), may_differ, below)
    return found


def covers(keys: Iterable[str], key: str) -> bool:
    """Whether a dotted key is one of ``keys`` or below one of them."""
    return any(key == given or key.startswith(f'{given}.') for given in keys)


def in_words(found: Differences, they: str, we: str) -> str:
    """Name each key that differs, with both values.

    Example:
        >>> in_words({'seed': (0, 1)}, 'was trained with', 'but this run asks for')
        'was trained with seed=0, but this run asks for 1'
    """
    pairs = ((key, shortened(a), shortened(b)) for key, (a, b) in found.items())
    return f'{they} ' + '; '.join(f'{key}={a}, {we} {b}' for key, a, b in pairs)


def shortened(value: Any) -> str:
    """The text of a value, with its hashes, such as those of files and commits, cut to 8 digits."""
    return re.sub(r'\b([0-9a-f]{8})[0-9a-f]{24,}\b', r'\1', str(value))


def upgrade(identity: dict, written_as: int) -> dict:
    """Rename the settings of an identity that was written in an earlier format to the present
    names. Settings that the earlier format did not store stay missing."""
    if written_as == FORMAT:
        return identity
    new = {}
    for name, value in identity.items():
        *parents, last = _FORMAT_1.get(name, name).split('.')
        node = new
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return new


def identity_in(checkpoint: dict, path: object) -> dict:
    """The identity of the run that wrote ``checkpoint``. Errors name ``path``, its file.

    Raises:
        UserError: if this suite, or one of its earlier versions, did not write the checkpoint.
    """
    if hasattr(checkpoint, 'provenance'):
        raise UserError(
            f'{path} is a backbone file, which is only a part of a network: give a checkpoint of a '
            'run, such as its epoch_1.pth or snapshot_1.pth.'
        )
    meta = checkpoint.get('meta')
    ours = isinstance(meta, dict) and isinstance(meta.get('identity'), dict)
    if not ours or not isinstance(meta.get('epoch'), int):
        raise UserError(
            f'{path} was not written by this suite: give a checkpoint of one of its runs.'
        )
    if (written_as := meta.get('format', 1)) > FORMAT:
        raise UserError(
            f'{path} has format {written_as}, but this version of the suite reads only formats '
            f'up to {FORMAT}: update the suite.'
        )
    return Contents(upgrade(meta['identity'], written_as), path)
