"""Check many files in several processes, and keep the result until a file changes."""

import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import counted


def cached(name: str, place: Path, fingerprint: str, check: Callable[[], tuple[Any, bool]]) -> Any:
    """Return the cached result for this fingerprint, or call ``check`` and cache its result.

    The user's cache directory keeps the latest result of each ``name`` and ``place``, a resolved
    path. ``check()`` returns a result of JSON values and whether to cache it: an unreadable file
    may become readable without a change of its fingerprint.
    """
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    key = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    cache = base / 'snapshot-distillation' / f'{name}-{key}.json'
    # A damaged or outdated result is treated as a missing one: a new one replaces it.
    try:
        results = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        results = None
    if isinstance(results, dict) and fingerprint in results:
        return results[fingerprint]
    result, keep = check()
    if not keep:
        return result
    try:
        write_atomically(cache, json.dumps({fingerprint: result}).encode())
    except OSError as error:
        print(
            f'warning: {place} was checked, but the result was not saved ({error}): the next run '
            'checks again.',
            file=sys.stderr,
        )
    return result


def fingerprint(paths: Iterable[bytes | str | Path], *facts: object) -> str:
    """Hash the paths, sizes and modification times of files, and the other ``facts``."""
    names = [*map(os.fsencode, paths)]

    def facts_of_files() -> Iterator[int]:
        for name in names:
            try:
                # Path.stat takes several times as long, and there may be a million files.
                info = os.stat(name)  # noqa: PTH116
            except OSError:  # a broken link, which the check reports
                info = os.lstat(name)
            yield info.st_size
            yield info.st_mtime_ns

    digest = hashlib.sha256(f'{facts}\n'.encode() + b'\0'.join(names))
    digest.update(np.fromiter(facts_of_files(), np.int64))
    return digest.hexdigest()


def content_sha256(
    place: Path, root: Path, names: Sequence[str | bytes], state: str | None = None
) -> str:
    """Hash the names and bytes of files. The hash is cached until the size or modification time of
    a file changes.

    Args:
        place: the resolved path under which the hash is cached, such as that of a data set.
        root: the folder that holds them.
        names: their paths relative to ``root``; the hash depends on their order.
        state: the :func:`fingerprint` of their full paths, if the caller knows it.
    """
    paths = paths_within(root, names)

    def read() -> tuple[str, bool]:
        contents = [*parallel_map(_file_sha256, paths, 64, None, f'reading {place}')]
        digest = hashlib.sha256()
        for name, content in zip(names, contents, strict=True):
            digest.update(os.fsencode(name) + b'\0' + content)
        return digest.hexdigest(), b'' not in contents

    return cached('content', place, state or fingerprint(paths), read)


def paths_within(root: Path, names: Iterable[str | bytes]) -> list[bytes]:
    """Join ``root`` and relative paths. Bytes take half the time of Path objects."""
    prefix = os.fsencode(root) + b'/'
    return [prefix + os.fsencode(name) for name in names]


def _file_sha256(path: bytes) -> bytes:
    try:
        with open(path, 'rb') as file:  # noqa: PTH123
            return hashlib.file_digest(file, 'sha256').digest()
    except OSError:  # a broken link, which the check reports
        return b''


def parallel_map(
    function: Callable[[Any], Any], items: Sequence, chunk: int, processes: int | None, title: str
) -> Iterator:
    """``map`` with a progress bar, in ``processes`` processes (None: one per core) that take
    ``chunk`` items at a time; below 32 chunks in this process without a bar, which is faster."""
    few = len(items) < 32 * chunk
    bar = partial(tqdm, desc=title, total=len(items), mininterval=10, disable=few)
    if few or processes == 1:
        yield from bar(map(function, items))
        return
    # Threads of this process may hold locks, so it must not be forked. The fork server has no
    # threads, and it imports the function's module, and torch with it, once for all processes.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([getattr(function, 'func', function).__module__])
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        yield from bar(pool.map(function, items, chunksize=chunk))


def _end_with_parent() -> None:
    """Have a process of the pool end when the process that started it does, for example by SIGTERM;
    else it would wait for work for ever and keep the output open."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def describe_findings(found: dict[str, list[str]], kinds: Iterable[str]) -> str:
    """Describe the findings of the given kinds by :func:`pretrain.runs.errors.counted`.

    Example:
        >>> describe_findings({'empty': ['a.jpg', 'b.jpg'], '16-bit': ['c.jpg']}, ['empty'])
        '2 empty (a.jpg, b.jpg)'
    """
    return ', '.join(counted(found[kind], kind) for kind in kinds if found.get(kind))
