import io
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from pretrain.runs.checkpoint import (
    checkpoints,
    is_whole,
    load_from_disk,
    seal,
    write_atomically,
)
from pretrain.runs.errors import UserError


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ('owned',)


def test_what_a_run_writes_loads_safely(train: Callable, tmp_path: Path) -> None:
    train('sd', tmp_path)
    loaded = load_from_disk(tmp_path / 'epoch_3.pth')
    assert loaded['meta']['epoch'] == 3
    assert len(loaded['message_hub']['log_scalars']['train/loss'].data[0]) == 12


class ReadsAnAttribute:
    def __reduce__(self) -> tuple:
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('payload', [Malicious(), ReadsAnAttribute()])
def test_code_in_a_checkpoint_does_not_run(
    payload: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': payload}, 'evil.pth')
    with pytest.raises(UserError, match='could run code'):
        mmengine.runner.checkpoint.CheckpointLoader.load_checkpoint('evil.pth')
    assert not Path('owned').exists()


@pytest.mark.faults
def test_damaged_and_missing_files(tmp_path: Path) -> None:
    torch.save({'a': torch.zeros(1000)}, tmp_path / 'whole.pth')
    data = (tmp_path / 'whole.pth').read_bytes()
    for name, part in (('cut.pth', data[: len(data) // 2]), ('empty.pth', b''), ('x.pth', b'?')):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError, match=f'{name} is damaged'):
            load_from_disk(tmp_path / name)
    with pytest.raises(UserError, match='No checkpoint'):
        load_from_disk(tmp_path / 'nowhere.pth')


@pytest.mark.parametrize('content', [[torch.zeros(2)], torch.zeros(2), 'text', None])
def test_a_file_without_names_is_no_checkpoint(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth holds a .*choose a checkpoint'):
        load_from_disk(tmp_path / 'x.pth')


@pytest.mark.faults
def test_interrupted_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'file'
    write_atomically(path, b'old')

    def power_cut(_: int) -> None:
        raise OSError(28, 'no space left')

    monkeypatch.setattr(os, 'fsync', power_cut)
    with pytest.raises(OSError, match='no space') as error:
        mmengine.fileio.put(b'new', str(path))
    assert error.value.filename == str(path)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.faults
def test_the_old_file_is_replaced_and_not_written_over(tmp_path: Path) -> None:
    """Whoever has the old file open, as a second name stands for here, still reads all of it."""
    path = tmp_path / 'file'
    write_atomically(path, b'old')
    os.link(path, tmp_path / 'open')
    write_atomically(path, b'new')
    assert path.read_bytes() == b'new'
    assert (tmp_path / 'open').read_bytes() == b'old'


def test_several_may_write_a_file_at_once(tmp_path: Path) -> None:
    """As the processes on several nodes do with the list of checked images."""
    path = tmp_path / 'file'
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for _ in pool.map(write_atomically, [path] * 8, contents):
                assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_in_the_order_of_training(tmp_path: Path) -> None:
    """Which that of their names is not."""
    names = ['epoch_0_iter_9', 'epoch_9', 'epoch_9_iter_2', 'epoch_9_iter_10', 'epoch_10']
    for name in (*reversed(names), 'epoch_best', 'kept_11', '.epoch_12'):
        (tmp_path / f'{name}.pth').touch()
    assert [path.stem for path in checkpoints(tmp_path)] == names


@pytest.fixture
def saved(train: Callable, tmp_path: Path) -> Path:
    """A checkpoint as a run writes it."""
    train('sd', tmp_path, 'epochs=2', 'algorithm.generations=2')
    return tmp_path / 'epoch_2.pth'


@pytest.mark.faults
def test_every_damage_is_found(saved: Path, tmp_path: Path) -> None:
    """Flipped bits and lost ends at 200 positions each, all of the archive's end among them."""
    whole, copy = saved.read_bytes(), tmp_path / 'copy.pth'
    rng = np.random.default_rng(0)
    ends = np.arange(len(whole) - 100, len(whole))  # the directory's end and the checksum
    for position in (*rng.integers(0, len(whole), 100), *ends):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        for data in (bytes(damaged), whole[:position]):
            copy.write_bytes(data)
            assert not is_whole(copy), position
    copy.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r'copy\.pth is damaged'):
        load_from_disk(copy)
    copy.write_bytes(whole)
    assert is_whole(copy)


def test_other_programs_read_a_sealed_checkpoint(saved: Path) -> None:
    weights = load_from_disk(saved)['state_dict']
    plain, buffer = saved.with_name('plain.pth'), io.BytesIO()
    torch.save({'state_dict': weights, 'epoch': 2}, buffer)
    plain.write_bytes(seal(buffer.getvalue()))
    assert torch.load(plain)['state_dict'].keys() == weights.keys()
    assert torch.load(plain, mmap=True)['epoch'] == 2
    with zipfile.ZipFile(plain) as archive:
        assert archive.testzip() is None


@pytest.mark.faults
def test_a_flipped_weight_of_another_library_is_found(tmp_path: Path) -> None:
    """torch.load returns another number without a word."""
    path = tmp_path / 'weights.pth'
    torch.save({'weight': torch.full((1000,), 3.0)}, path)
    assert is_whole(path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((4,), 3.0).numpy().tobytes()) + 3] ^= 64
    path.write_bytes(data)
    assert not torch.load(path)['weight'].eq(3).all()
    with pytest.raises(UserError, match='damaged'):
        load_from_disk(path)
