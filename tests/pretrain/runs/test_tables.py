import json
from pathlib import Path

import pytest

from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT
from pretrain.runs.tables import Table, collect_records, find_records, format_p


def write(folder: Path, config: str, seed: int, **more: object) -> dict:
    record = {
        'format': FORMAT,
        'status': 'finished',
        'task': 'classification',
        'config': config,
        'label': 'BL',
        'identity': {'randomness': {'seed': seed}},
        'error': 0.1 + 0.2,
    }
    folder.mkdir(parents=True)
    (folder / 'run.json').write_text(json.dumps(record | more, indent=1))
    return record | more


def test_a_label_does_not_part_a_cell() -> None:
    first, *_ = str(Table(['a|b', 'c'], [])).splitlines()
    assert first == r'| a\|b |   c |'


def test_a_file_holds_what_the_folder_held(tmp_path: Path) -> None:
    runs = tmp_path / 'runs'
    # Neither the order of the folders nor that of the alphabet: seed 10 comes after seed 9.
    last = write(runs / 'a', 'b', 10)
    second = write(runs / 'b', 'b', 9)
    first = write(runs / 'c', 'a', 0, task='detection')
    running = write(runs / 'd', 'a', 1, status='running')
    out = tmp_path / 'results/set.jsonl'
    assert collect_records(runs, out) == 3
    assert [json.loads(line) for line in out.read_text().splitlines()] == [first, second, last]
    assert find_records(out) == [second, last]
    assert find_records(out, ['detection']) == find_records(runs, ['detection']) == [first]
    assert collect_records(runs, out, running=True) == 4
    assert find_records(out) == [second, last]
    assert find_records(out, ['classification'], running=True) == [running, second, last]


def test_the_same_runs_give_the_same_file(tmp_path: Path) -> None:
    for name, order in (('one', 'xy'), ('two', 'yx')):
        for folder, seed in zip(order, (0, 0), strict=True):
            label = {'x': 'BL', 'y': 'SD'}[folder]
            write(tmp_path / name / order[0] / folder, 'a', seed, label=label)
        collect_records(tmp_path / name, tmp_path / f'{name}.jsonl')
    collect_records(tmp_path / 'one.jsonl', tmp_path / 'again.jsonl')
    contents = {path.read_bytes() for path in tmp_path.glob('*.jsonl')}
    assert len(contents) == 1


def test_nothing_is_written_when_there_is_no_record(tmp_path: Path) -> None:
    out = tmp_path / 'set.jsonl'
    out.write_text('{}\n')
    write(tmp_path / 'runs', 'a', 0, status='running')
    with pytest.raises(UserError, match=r'no record of a finished run in .*runs'):
        collect_records(tmp_path / 'runs', out)
    with pytest.raises(UserError, match=r'give it the suffix \.jsonl'):
        collect_records(tmp_path / 'runs', tmp_path / 'set.json')
    assert out.read_text() == '{}\n'


@pytest.mark.parametrize(
    ('p', 'text'),
    [
        (None, '–'),
        (0.0009, '<0.001'),
        (0.001, '0.001'),
        (0.0494, '0.049'),
        (0.0499, '0.0499'),
        (0.0501, '0.0501'),
        (0.0506, '0.051'),
    ],
)
def test_a_p_value_tells_on_which_side_of_5_percent_it_is(p: float | None, text: str) -> None:
    assert format_p(p) == text
