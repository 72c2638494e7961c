"""Where a run begins, and which checkpoint it may continue."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config

from pretrain.runs.checkpoint import checkpoints, is_whole, load_from_disk, progress
from pretrain.runs.config import stage_of
from pretrain.runs.errors import UserError
from pretrain.runs.identity import covers, differences, identity_in, in_words
from pretrain.runs.record import read_record

# mmengine restores these from the checkpoint or counts iterations by them, so a changed setting
# would have no effect or a wrong one.
FIXED = 'optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'param_scheduler'
FIXED += 'randomness.seed', 'batch_size'
FIXED += 'model.network', 'model.teacher_network', 'algorithm.features'  # other tensors
# Also fixed within an epoch: the rest of its images must follow in the same order and shares.
FIXED_WITHIN = 'world_size', 'data_seed', 'data'

# Returns the keys that may differ. The arguments: how many epochs the checkpoint has begun, the
# identities of the checkpoint and of the run, and whether another run wrote the checkpoint.
MayDiffer = Callable[[int, dict, dict, bool], Sequence[str]]


def choose_start(config: Config, args: Namespace) -> bool:
    """Set ``load_from``, ``resume`` and ``accepted_changes`` of a prepared config.

    A run begins with its own newest undamaged checkpoint, else with that of ``--start-from`` (or
    the one its record names), else with new weights.

    Returns:
        Whether there is anything left to train. If not, a printed line says so.

    Raises:
        UserError: if the folder holds a run and ``--resume`` is not given, or if the run cannot be
            resumed.
    """
    work_dir = Path(config.work_dir)
    if not args.resume and holds_run(work_dir):
        raise UserError(
            f'{config.work_dir} already holds a run: add --resume to continue it, or choose '
            'another --work-dir for a new one.'
        )
    record, found = read_record(work_dir / 'run.json'), checkpoints(work_dir)
    if found and record is None:
        raise UserError(
            f'{work_dir} has checkpoints but no run.json, the record of the run so far: restore it '
            'from a copy, or begin a new run in another --work-dir.'
        )
    finished = record is not None and record['status'] == 'finished'
    config.load_from, config.resume, config.accepted_changes = None, False, []
    if finished and not found:  # its checkpoints were deleted, or it never saves any
        check_finished(work_dir, record, config.identity.to_dict())
        return _nothing_to_do(work_dir)
    newest = _newest_whole(found) if found else None
    started_from = record['started_from'] if record else None
    config.load_from = str(newest) if newest else args.start_from or started_from
    if config.load_from is None:
        return True
    config.resume = True
    checkpoint = load_from_disk(config.load_from)
    changed = check_resume(
        checkpoint,
        config.load_from,
        config.identity.to_dict(),
        getattr(stage_of(config), 'may_differ', None),
        another_run=newest is None,
        accepted=args.accept_change,
    )
    # Perhaps no iteration was trained with the record's changes. Old checkpoints lack their own.
    recorded = record['accepted_changes'] if record else []
    changes = checkpoint['meta'].get('accepted_changes', recorded)
    config.accepted_changes = changes + [change for change in changed if change not in changes]
    if finished and progress(newest)[0] >= config.train_cfg.max_epochs:
        return _nothing_to_do(work_dir)
    return True


def holds_run(work_dir: Path) -> bool:
    """Whether a folder holds the record or a checkpoint of a run."""
    return (work_dir / 'run.json').exists() or bool(checkpoints(work_dir))


def _nothing_to_do(work_dir: Path) -> bool:
    print(f'{work_dir}: this run is finished. There is nothing to do.')
    return False


def check_finished(
    work_dir: Path, record: dict, identity: dict, may_differ: Sequence[str] = ()
) -> None:
    """Raise a UserError if the identity in the ``record`` of the finished run in ``work_dir``
    differs from ``identity`` in keys other than ``may_differ``."""
    if found := differences(record['identity'], identity, may_differ):
        raise UserError(
            f'{work_dir} holds a finished run with other settings: '
            f'{in_words(found, "it has", "but this one has")}. Choose another --work-dir, or '
            'delete that run.'
        )


def _newest_whole(found: list[Path]) -> Path:
    """The newest undamaged checkpoint of ``found``, a run's checkpoints, oldest first."""
    for path in reversed(found):
        if is_whole(path):
            return path
        print(f'{path} is damaged: the run resumes from an older checkpoint.', file=sys.stderr)
    raise UserError(
        f'All checkpoints of {found[0].parent} are damaged: put an intact copy there, or begin a '
        'new run in another --work-dir.'
    )


def check_resume(
    checkpoint: dict,
    path: str,
    identity: dict,
    may_differ: MayDiffer | None = None,
    another_run: bool = False,
    accepted: Sequence[str] = (),
) -> list[dict]:
    """Refuse a checkpoint if its run's identity differs in keys that are not allowed or accepted.

    Args:
        checkpoint: the loaded checkpoint.
        path: its file, for the message.
        identity: the identity of the run that continues it.
        may_differ: the stage's rule for the keys that may differ, if it has one.
        another_run: whether another run wrote the checkpoint, from which this run branches off.
        accepted: keys in which the user accepts differences, also in all keys below them.

    Returns:
        The accepted differences: ``epoch``, ``key``, ``was`` and ``now`` of each.

    Raises:
        UserError: naming every other key that differs, with both values.
    """
    theirs, meta = identity_in(checkpoint, path), checkpoint['meta']
    epoch = meta['epoch']
    # Old checkpoints lack the length; then the name tells whether the next epoch has begun.
    length, (_, more) = meta.get('epoch_length'), progress(Path(path)) or (epoch, 0)
    begun = epoch + (meta['iter'] > epoch * length if length else more > 0)
    allowed = may_differ(begun, theirs, identity, another_run) if may_differ else ()
    within = FIXED_WITHIN if begun > epoch else ()
    changed = differences(theirs, identity, [key for key in allowed if key not in within])
    fixed = {key for key in changed if covers((*FIXED, *within), key)}
    refused = {
        key: pair for key, pair in changed.items() if key in fixed or not covers(accepted, key)
    }
    if refused:
        flags = ' '.join(f'--accept-change {key}' for key in refused)
        advice = f'or start tools/train.py with {flags} to change them on purpose'
        if fixed:
            advice = 'on which the checkpoint depends'
        settings = in_words(refused, 'was trained with', 'but this run asks for')
        if any(covers(['data'], key) for key in refused):
            settings += ' (other images in data_root, or other lists of images)'
        raise UserError(
            f'{path} (epoch {epoch}) {settings}: go back to the old values, {advice}, or begin a '
            'new run in another --work-dir.'
        )
    return [{'epoch': epoch, 'key': k, 'was': was, 'now': now} for k, (was, now) in changed.items()]
