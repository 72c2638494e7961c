"""Check many files: in several processes, and only once until one of them changes."""

import hashlib
import json
import multiprocessing
import os
import sys
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
    """Return the result of ``check``, or the one that is kept for the same fingerprint.

    The user's cache directory keeps the latest result of each ``name`` and ``place``, a resolved
    path. ``check()`` returns a result, which must fit into JSON, and whether to keep it: a file
    that could not be read may be readable the next time, though its fingerprint is the same.
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
        print(f'warning: the next run checks {place} again: {error}', file=sys.stderr)
    return result


def fingerprint(paths: Iterable[bytes | str | Path], *facts: object) -> str:
    """Hash the paths, sizes and times of files, and the other facts that a check depends on."""
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
    """Hash the names and the bytes of files. The bytes are read once, until the size or the time of
    a file changes.

    Args:
        place: what the files belong to, as a resolved path.
        root: the folder that holds them.
        names: their paths relative to ``root``, in the order that counts.
        state: what :func:`fingerprint` gives for them, if it is known.
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
    """The paths of files that are named relative to ``root``; bytes take half the time of Paths."""
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
    """``map`` in several processes, with a progress bar; in this one and without a bar if there are
    fewer than 32 chunks, which would take less time than starting the processes."""
    few = len(items) < 32 * chunk
    bar = partial(tqdm, desc=title, total=len(items), mininterval=10, disable=few)
    if few or processes == 1:
        yield from bar(map(function, items))
        return
    # This process has threads that may hold locks, so it is not forked. The fork server has none,
    # and imports the function's module, and torch with it, once for all processes.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([getattr(function, 'func', function).__module__])
    with ProcessPoolExecutor(processes, context) as pool:
        yield from bar(pool.map(function, items, chunksize=chunk))


def describe_findings(found: dict[str, list[str]], kinds: Iterable[str]) -> str:
    """Count and show the findings of the given kinds, as :func:`pretrain.runs.errors.counted` does.

    Example:
        >>> describe_findings({'empty': ['a.jpg', 'b.jpg'], 'grey': ['c.jpg']}, ['empty'])
        '2 empty (a.jpg, b.jpg)'
    """
    return ', '.join(counted(found[kind], kind) for kind in kinds if found.get(kind))
