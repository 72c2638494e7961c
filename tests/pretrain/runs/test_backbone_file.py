"""What a backbone file says of the file that its weights come from."""

from pathlib import Path

import pytest

from pretrain.runs.backbone_file import source_facts


def test_the_source_has_its_folder_wherever_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'seed0'
    folder.mkdir()
    (folder / 'snapshot_1.pth').write_bytes(b'')
    monkeypatch.chdir(folder)
    sources = [
        source_facts({}, path)['source']
        for path in (Path('snapshot_1.pth'), folder / 'snapshot_1.pth')
    ]
    assert sources == ['seed0/snapshot_1.pth'] * 2
