import json
import shutil
from pathlib import Path

import yaml

from downstream.studies.metafiles import metafiles
from tests.conftest import ROOT


def test_runs_on_other_data_have_a_result_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    path = tmp_path / 'configs/small/results/bccd.jsonl'
    first, *others = map(json.loads, path.read_text().splitlines())
    first['data']['train'] = {'count': 100, 'sha256': 'other'}
    path.write_text('\n'.join(map(json.dumps, (first, *others))))
    small = yaml.safe_load(metafiles(tmp_path)[tmp_path / 'configs/small/metafile.yml'])
    (model,) = (m for m in small['Models'] if m['Name'] == 'faster_rcnn_r18_bccd')
    one, rest = sorted(model['Results'], key=lambda result: len(result['Metrics']))
    assert one['Dataset'] == 'bccd-voc (100 train, 72 val images)'
    value = round(100 * first['generations'][-1]['last']['mAP'], 2)
    assert one['Metrics'] == {f'mAP ({first["label"]})': value}
    assert rest['Dataset'] == 'bccd-voc (292 train, 72 val images)'
    assert len(rest['Metrics']) == 4
