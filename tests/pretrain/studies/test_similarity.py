import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.classifier import student_weights
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Run
from pretrain.runs.record import read_record
from pretrain.studies.similarity import Similarity


@pytest.fixture
def similarity(tiny_file: Callable, tmp_path: Path) -> Similarity:
    return Similarity(tiny_file('bl'), [0, 1, 2], [3], tmp_path / 'out')


def test_protocol_of_section_3_3_2(similarity: Similarity, launched: list[Run]) -> None:
    """A source, three teachers, and six pairs whose teacher shares no more than the student."""
    records = similarity.run()
    labels = ['T#0', 'T#1', 'T#2']
    pairs = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    labels += [f'M#{student}<T#{teacher}' for student, teacher in pairs]
    assert [record['label'] for record in records] == labels
    assert len(launched) == 1 + len(records)

    out = similarity.work_dir / 'seed3'
    source = load_from_disk(out / 'M/snapshot_1.pth')['state_dict']
    for shared in (1, 2):
        kept = load_from_disk(out / f'M/kept_{shared}.pth')['state_dict']
        teacher = read_record(out / f'T_{shared}/run.json')
        original = read_record(out / 'M/run.json')
        # The first epochs are the source's, the others are not.
        assert teacher['history'][:shared] == original['history'][:shared]
        assert teacher['history'][shared]['train'] != original['history'][shared]['train']
        assert teacher['identity']['data_seed'] == 1003
        assert teacher['identity']['randomness']['seed'] == original['identity']['data_seed'] == 3
        assert kept.keys() == source.keys()
    for student, teacher in pairs:
        folder = out / f'M_{student}_T_{teacher}'
        history = read_record(folder / 'run.json')['history']
        assert ['difference' in entry['train'] for entry in history] == [
            e >= student for e in range(4)
        ]
        end = load_from_disk(folder / 'snapshot_1.pth')['state_dict']
        weights = student_weights(load_from_disk(out / f'T_{teacher}/snapshot_1.pth'))
        for name, tensor in weights.items():
            assert torch.equal(end[f'teacher.{name}'], tensor)


def test_finished_runs_are_not_run_again(similarity: Similarity, launched: list[Run]) -> None:
    similarity.run()
    launched.clear()
    shutil.rmtree(similarity.work_dir / 'seed3/M_1_T_0')
    similarity.run()
    assert [run.title for run in launched] == ['[6/10] M#1<T#0, seed 3']


def test_an_epoch_that_the_source_did_not_keep_is_named(
    similarity: Similarity, launched: list[Run]
) -> None:
    similarity.run()
    launched.clear()
    for epoch in (1, 2):
        (similarity.work_dir / f'seed3/M/kept_{epoch}.pth').unlink()
    similarity.run()  # finished runs do not need them
    shutil.rmtree(similarity.work_dir / 'seed3/T_2')
    message = 'M was trained without keeping epoch 2, from which T#2, seed 3 starts'
    with pytest.raises(UserError, match=message):
        similarity.run()
    assert not launched


@pytest.mark.parametrize('shared', [[], [1, 0], [0, 0], [0, 4], [-1, 1]])
def test_impossible_shares(
    shared: list[int], tiny_file: Callable, launched: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match='shared epochs'):
        Similarity(tiny_file('bl'), shared, [0], tmp_path / 'out').run()
    assert not launched


def test_a_seed_is_given_once(tiny_file: Callable, launched: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match='a seed is given twice'):
        Similarity(tiny_file('bl'), [0], [1, 0, 1], tmp_path / 'out').run()
    assert not launched


def test_source_is_a_baseline(tiny_file: Callable, launched: list[Run], tmp_path: Path) -> None:
    for taught in ({'teacher_weight': 1.0}, {'generations': 2}):
        config = tiny_file('sd', **{'generations': 1} | taught)
        with pytest.raises(UserError, match='not the config of a baseline'):
            Similarity(config, [0], [0], tmp_path / 'out').run()
