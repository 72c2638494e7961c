import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.runs.errors import UserError
from pretrain.runs.launch import Run
from pretrain.runs.record import read_record
from pretrain.studies.sweep import Sweep, _share


@pytest.fixture
def sweep(tiny_file: Callable, tmp_path: Path) -> Sweep:
    taught = dict(generations=2, teacher_weight=1.0)
    configs = [
        tiny_file('bl'),
        tiny_file('se', generations=2),
        tiny_file('t2', **taught, temperature=2.0),
        tiny_file('t3', **taught, temperature=3.0),
        tiny_file('kd', **taught, fresh_student=True),
    ]
    return Sweep(configs, seeds=[0, 1], work_dir=tmp_path / 'out')


def test_generation_1_is_computed_once(sweep: Sweep, launched: list[Run]) -> None:
    """SE's is T=2's and T=3's; the whole generations of BL and KD are their own."""
    records = sweep.run()
    assert len(records) == len(launched) == 10
    sources = {
        run.work_dir.parent.name: run.start_from for run in launched if run.title.endswith('seed 1')
    }
    snapshot = sweep.work_dir / 'se/seed1/snapshot_1.pth'
    assert sources == {'bl': None, 'se': None, 'kd': None, 't2': snapshot, 't3': snapshot}
    for seed in (0, 1):
        ensemble, *students = (
            read_record(sweep.work_dir / f'{stem}/seed{seed}/run.json')
            for stem in ('se', 't2', 't3')
        )
        for student in students:
            assert student['identity']['randomness']['seed'] == seed
            assert student['generations'][0] == ensemble['generations'][0]
            assert sum(entry['iterations'] for entry in student['history']) == 4 * 4
        assert students[0]['history'][3]['train'] != students[1]['history'][3]['train']
    kd = read_record(sweep.work_dir / 'kd/seed0/run.json')
    assert sum(entry['iterations'] for entry in kd['history']) == 2 * 4 * 4


def test_finished_runs_are_not_run_again(sweep: Sweep, launched: list[Run]) -> None:
    first = sweep.run()
    launched.clear()
    shutil.rmtree(sweep.work_dir / 't3/seed1')
    again = sweep.run()
    assert [run.title for run in launched] == ['[10/10] t3, seed 1']
    assert [r['generations'][-1]['last'] for r in again] == [
        r['generations'][-1]['last'] for r in first
    ]


def test_mistakes_stop_before_anything_runs(sweep: Sweep, launched: list[Run]) -> None:
    for wrong in (
        Sweep([sweep.configs[0]] * 2, [0], sweep.work_dir),
        Sweep(sweep.configs, [0, 0], sweep.work_dir),
        Sweep(sweep.configs, [0], sweep.work_dir, ['algorithm.temperature=-1']),
        Sweep(sweep.configs, [0], sweep.work_dir, ['epochs=3']),
    ):
        with pytest.raises(UserError):
            wrong.run()
    assert not launched


def test_what_runs_share(tiny_config: Callable, tmp_path: Path) -> None:
    ours, sd, other_order, other_rate = (
        tiny_config(method, tmp_path, *options).identity.to_dict()
        for method, *options in (
            ('se',), ('sd',), ('sd', 'data_seed=1'), ('sd', 'optim_wrapper.optimizer.lr=0.5'),
        )
    )  # fmt: skip
    assert [_share(ours, other) for other in (sd, other_order, other_rate)] == [True, False, False]
