import re
from pathlib import Path

import pytest

from downstream import doctor


def test_what_is_there_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ('JPEGImages', 'Annotations'):
        (tmp_path / 'data/VOCdevkit/VOC2007' / folder).mkdir(parents=True)
    monkeypatch.setattr(doctor, 'missing_packages', list)
    monkeypatch.setattr(doctor, 'needed_packages', lambda: ['torch', 'mmcv-lite'])
    lines = list(doctor.examine(tmp_path / 'data', tmp_path / 'runs'))
    report = '\n'.join(lines)
    assert re.search(r'packages: torch [\d.]+.*, mmcv-lite [\d.]+', report)
    assert 'voc07: found' in lines
    assert f'imagenet: no {tmp_path}/data/imagenet/train' in lines
    for pattern in (
        r"operators of detectors: (torchvision|compiled mmcv)'s",
        r"precision='auto' means (bf16|float32)",
        rf'work directory: [\d.,]+ GB free in {tmp_path}',
        r'disk: reads [\d,]+ MB per second',
        r'decoder: [\d,]+ images of 500 x 375 pixels per second on one core',
    ):
        assert re.search(pattern, report), pattern
    assert not (tmp_path / 'runs').exists()


def test_missing_packages_come_before_what_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, 'missing_packages', lambda: ['simplejpeg', 'scipy'])
    *_, last = doctor.examine(tmp_path, tmp_path)
    assert last == 'MISSING: pip install simplejpeg scipy'
