"""Random and damaged files and values: each works or gives an error of one sentence."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from downstream.import_backbone import import_backbone
from downstream.studies.tables import transfer_table
from downstream.voc_checks import _check_boxes, read_list
from pretrain.build import prepare
from pretrain.export import export_backbone
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.config import load_config, walk
from pretrain.runs.errors import UserError
from pretrain.runs.tables import find_records
from tests.conftest import ROOT

quick = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """``text`` with a few pieces deleted, doubled or replaced, and possibly cut off."""
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        piece = draw(
            st.sampled_from(
                [b'', b'\0', b'\xff', b'<', b'>', b'"', b'&x;', b'-1', b'1e999', b'nan']
            )
            | st.just(2 * text[start : start + length])
            | st.binary(max_size=4)
        )
        text = text[:start] + piece + text[start + length :]
    return text[: draw(st.integers(0, len(text)) | st.just(len(text)))]


LIST = '000001\n000002\n2007_000003\nä b\n'.encode()


@quick
@given(
    st.binary(max_size=40) | damaged(LIST) | st.text(max_size=20).map(lambda t: t.encode('utf-16'))
)
def test_lists(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'train.txt').write_bytes(content)
    try:
        names = read_list(tmp_path / 'train.txt')
    except UserError as error:
        assert 'train.txt' in str(error)
        return
    assert names
    assert all(name and name == name.strip() and '\ufeff' not in name for name in names)
    assert '\n'.join(names) == content.decode().replace('\r\n', '\n').rstrip('\n')


@quick
@given(data=st.data())
def test_annotations(voc: Path, tmp_path: Path, data: st.DataObject) -> None:
    """All objects of an accepted annotation have a class."""
    whole = (voc / 'VOC2007/Annotations/000001.xml').read_bytes()
    (tmp_path / '000001.xml').write_bytes(data.draw(damaged(whole)))
    problems, classes, _ = _check_boxes(tmp_path / '000001.xml', '000001.jpg', 64, 48)
    assert all(isinstance(part, str) for problem in problems for part in problem)
    assert problems or all(classes)


BCCD = ROOT / 'configs/small/results/bccd.jsonl'


@quick
@given(data=st.data())
def test_records(tmp_path: Path, data: st.DataObject) -> None:
    lines = BCCD.read_bytes().splitlines()
    lines[0] = data.draw(damaged(lines[0]))
    (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(lines))
    one_sentence(lambda: transfer_table(find_records(tmp_path / 'a.jsonl', ('detection',))))


@quick
@given(data=st.data())
def test_records_that_lack_a_part(tmp_path: Path, data: st.DataObject) -> None:
    lines = BCCD.read_text().splitlines()
    record = json.loads(lines[0])
    node = record
    while True:
        key = data.draw(st.sampled_from([*node] if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    del node[key]
    lines[0] = json.dumps(record)
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    one_sentence(lambda: transfer_table(find_records(tmp_path / 'a.jsonl', ('detection',))))


def one_sentence(call: Callable[[], object]) -> None:
    try:
        call()
    except UserError as error:
        assert str(error)


VALUES = st.one_of(
    st.integers(-3, 3), st.floats(-2, 2), st.booleans(), st.none(), st.text(max_size=5)
)
VALUES = st.recursive(
    VALUES,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2),
    max_leaves=4,
)
DEMO = ROOT / 'configs/demo/r18_sd.py'
KEYS = [key for key, _ in walk(load_config(DEMO).to_dict())]


@quick
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_settings(key: str, value: Any, image_folder: Path) -> None:
    files = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=4']
    one_sentence(lambda: prepare(load_config(DEMO, [*files, f'{key}={value}'])))


CONTENTS = st.recursive(
    VALUES | st.just(torch.ones(2)),
    lambda v: st.dictionaries(
        st.sampled_from(['meta', 'state_dict', 'model', 'identity', 'epoch', 'conv1.weight', 'x']),
        v,
        max_size=4,
    ),
    max_leaves=8,
)


@quick
@given(content=CONTENTS)
def test_checkpoints(tmp_path: Path, content: Any) -> None:
    torch.save(content, path := tmp_path / 'a.pth')
    one_sentence(lambda: export_backbone(path, tmp_path / 'out.pth'))
    one_sentence(lambda: import_backbone(path, tmp_path / 'out.pth', None, 'imagenet-rgb'))
    with pytest.raises(UserError):
        load_backbone_file(path)


@quick
@given(content=st.binary(max_size=60))
@example(content=b'j')  # struct.error
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(UserError):
        load_backbone_file(path)
    with pytest.raises(UserError):
        import_backbone(path, tmp_path / 'out.pth', None, 'imagenet-rgb')


def old_checkpoint() -> bytes:
    """A checkpoint in torch's format of before 2020: pickles without a checksum."""
    content, file = {'weight': torch.ones(2)}, io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


OLD = old_checkpoint()


@quick
@given(content=damaged(OLD))
@example(content=OLD[:259] + b'h' + OLD[260:])  # TypeError
@example(content=OLD[:263] + b'J' + OLD[264:])  # AttributeError
def test_damaged_old_checkpoints(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / 'a.pth').write_bytes(content)
    one_sentence(lambda: load_from_disk(path))
