"""A look at many files: in several processes, and only once until one of them changes."""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pretrain.runs.checkpoint import write_atomically

SHOWN = 20  # names of each kind in a message


def remembered(name: str, place: Path, fingerprint: str, look: Callable[[], Any]) -> Any:
    """What ``look`` returns, kept in the user's cache directory until the fingerprint changes.

    Args:
        name: of the kind of look.
        place: the folder or the file that is looked at, as a resolved path.
        fingerprint: as :func:`fingerprint` makes it.
        look: called if nothing is kept; returns what JSON can hold.
    """
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    key = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    cache = base / 'snapshot-distillation' / f'{name}-{key}.json'
    # A missing, a damaged and an outdated result are the same: a new one takes their place.
    try:
        cached = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        cached = None
    if isinstance(cached, dict) and fingerprint in cached:
        return cached[fingerprint]
    result = look()
    try:
        write_atomically(cache, json.dumps({fingerprint: result}).encode())
    except OSError as error:
        print(f'warning: the next run looks at {place} again: {error}', file=sys.stderr)
    return result


def fingerprint(paths: Iterable[str | Path], *facts: object) -> str:
    """A hash of the paths, sizes and times of files, and of what else a look at them depends on."""
    digest = hashlib.sha256(f'{facts}\n'.encode())
    for path in paths:
        try:
            # Of a million files; Path.stat takes several times as long.
            info = os.stat(path)  # noqa: PTH116
        except OSError:  # a link to nowhere, which the look reports
            info = os.lstat(path)
        digest.update(os.fsencode(f'{path}\0{info.st_size} {info.st_mtime_ns}\n'))
    return digest.hexdigest()


def parallel_map(
    function: Callable[[Any], Any], items: Sequence, chunk: int, processes: int | None
) -> Iterator:
    """``map`` in several processes, if there are the 32 chunks that make up for starting them."""
    if processes == 1 or len(items) < 32 * chunk:
        yield from map(function, items)
        return
    # Not forked from this process, whose threads may hold locks, but from one without threads that
    # has imported the function's module, and torch with it, once for all.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([getattr(function, 'func', function).__module__])
    with ProcessPoolExecutor(processes, context) as pool:
        yield from pool.map(function, items, chunksize=chunk)


def report(found: dict[str, list[str]], kinds: Iterable[str]) -> str:
    """Some kinds of what a look has found, with up to ``SHOWN`` names each, such as
    '2 truncated (train/n01/a.JPEG, train/n02/b.JPEG), 1 empty (val/n01/c.JPEG)'."""
    return ', '.join(
        f'{len(names):,} {kind} ({", ".join(names[:SHOWN])}{", ..." if len(names) > SHOWN else ""})'
        for kind in kinds
        if (names := found.get(kind))
    )
