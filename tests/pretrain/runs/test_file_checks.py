import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.runs import file_checks
from pretrain.runs.file_checks import (
    cached,
    content_sha256,
    describe_findings,
    fingerprint,
    parallel_map,
)


def test_many_items_leave_this_process() -> None:
    def pids(count: int) -> set[int]:
        return set(parallel_map(operator.call, [os.getpid] * count, 1, 2, ''))

    assert pids(31) == {os.getpid()}
    assert os.getpid() not in pids(32)


def test_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    looks = []

    def check(name: str, place: str, print_of_it: str) -> int:
        return cached(
            name, Path(place), print_of_it, lambda: (looks.append(name) or len(looks), True)
        )

    assert [check('boxes', '/a', 'x') for _ in range(3)] == [1, 1, 1]
    assert check('masks', '/a', 'x') == 2
    assert check('boxes', '/b', 'x') == 3
    assert check('boxes', '/a', 'y') == 4
    assert check('boxes', '/a', 'x') == 5  # the last result alone is kept


def test_what_could_not_be_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right to read it, or a disk that answers again, changes no size and no time."""
    (tmp_path / 'a').write_text('a')
    seen = [b'', b'sha256', b'other']
    monkeypatch.setattr(file_checks, '_file_sha256', lambda _: seen.pop(0))
    unread, read, again = (content_sha256(tmp_path, tmp_path, ['a']) for _ in range(3))
    assert unread != read == again


def test_fingerprint_tells_files_and_facts_apart(tmp_path: Path) -> None:
    file, other = tmp_path / 'file', tmp_path / 'other'
    file.write_text('one')
    other.write_text('one')
    os.utime(other, ns=(0, 0))
    first = fingerprint([file], 'cat')
    seen = {first, fingerprint([file], 'dog'), fingerprint([file]), fingerprint([other], 'cat')}
    assert len(seen) == 4
    assert fingerprint([file], 'cat') == first
    file.write_text('three')
    assert fingerprint([file], 'cat') not in seen


def test_describe_findings_names_some_of_a_kind() -> None:
    kinds = ('empty', 'truncated', '16-bit')
    twenty = [f'{number}.jpg' for number in range(20)]
    found = {'empty': ['a'], 'grey': ['b'], 'truncated': twenty, '16-bit': [*twenty, 'c']}
    named = ', '.join(twenty)
    text = f'empty (a), 20 truncated ({named}), 21 16-bit ({named}, ...)'
    assert describe_findings(found, kinds) == f'1 {text}'
    assert describe_findings(found, ['grey']) == '1 grey (b)'
    assert describe_findings({}, kinds) == ''


def test_content_is_names_and_bytes_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ['a', 'b']
    for root in ('one', 'moved'):
        (tmp_path / root).mkdir()
        for name in names:
            (tmp_path / root / name).write_text(name)

    def content(root: str) -> str:
        return content_sha256(tmp_path / root, tmp_path / root, names)

    first = content('one')
    assert content('moved') == first
    (tmp_path / 'moved/b').write_text('c')
    assert content('moved') != first
    (tmp_path / 'moved/b').unlink()
    (tmp_path / 'moved/b').write_text('b')
    assert content('moved') == first
    monkeypatch.setattr(file_checks, '_file_sha256', None)
    assert content('one') == first


def test_a_pool_ends_with_the_process_that_started_it() -> None:
    """Else a run that is stopped while it checks its data would leave processes that wait for ever
    and keep its output open."""
    program = 'import time; from pretrain.runs.file_checks import parallel_map; '
    program += 'print(1, flush=True); '
    program += 'list(parallel_map(time.sleep, [0.2] * 1000, 1, 2, "sleeping"))'
    command = [sys.executable, '-c', program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        for _ in process.stderr:  # the progress bar: the pool has begun
            break
        process.terminate()
        output, _ = process.communicate(timeout=60)  # its end needs that of all processes
    assert output == b''
