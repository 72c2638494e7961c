"""The rows of the paper's tables: that none is lost, and that their numbers are the paper's."""

import re

import pytest

from pretrain.build import NOT_IDENTITY
from pretrain.runs.config import load_config
from pretrain.runs.identity import differences, identity_of
from pretrain.runs.record import read_records
from pretrain.studies.paper_tables import CIFAR, TABLE_4, paper_table
from tests.conftest import ROOT

# Table 3: the errors at the ends of the mini-generations, of the best epoch and of the ensemble.
TABLE_3 = """
resnet20_bl       33.57                    33.57
resnet20_se       36.17 33.36 32.98 32.66  32.54 30.86
resnet20_sd_t2    36.17 33.78 32.98 32.31  32.31 32.08
resnet20_sd_t3    36.17 33.69 32.24 31.97  31.76 30.76
resnet32_bl       31.61                    31.61
resnet32_se       33.78 32.15 31.41 30.74  30.51 28.93
resnet32_sd_t2    33.78 32.07 31.05 30.67  30.57 29.80
resnet32_sd_t3    33.78 31.52 30.64 30.32  30.16 28.71
resnet56_bl       30.23                    29.94
resnet56_se       32.85 31.60 30.45 29.68  29.55 27.93
resnet56_sd_t2    32.85 30.47 29.72 29.29  29.22 28.11
resnet56_sd_t3    32.85 30.82 29.55 29.37  29.28 27.74
resnet110_bl      28.77                    28.53
resnet110_se      31.89 29.81 29.07 28.27  28.09 26.45
resnet110_sd_t2   31.89 29.84 28.71 27.71  27.52 27.19
resnet110_sd_t3   31.89 29.22 28.37 27.87  27.75 26.19
densenet100_bl    22.49                    22.00
densenet100_se    24.31 22.76 22.16 22.18  22.00 19.63
densenet100_sd_t2 24.31 23.10 22.06 21.78  21.59 20.27
densenet100_sd_t3 24.31 23.19 21.60 21.17  21.17 19.71
densenet190_bl    16.82                    16.69
densenet190_se    18.98 18.12 16.95 16.84  16.70 15.70
densenet190_sd_t2 18.98 17.48 16.32 18.02  16.06 15.72
densenet190_sd_t3 18.98 17.67 16.95 18.65  16.33 15.92
"""


@pytest.mark.parametrize('line', TABLE_3.split('\n')[1:-1])
def test_numbers_of_table_3_are_the_papers(line: str) -> None:
    name, *numbers = line.split()
    paper = load_config(CIFAR / f'{name}.py').paper
    ours = [*paper.top1_error, paper.best, *([paper.ensemble] if 'ensemble' in paper else [])]
    assert ours == [float(number) for number in numbers]


@pytest.mark.parametrize('name', TABLE_4)
def test_numbers_of_table_4_are_those_that_the_config_states_in_words(name: str) -> None:
    path = ROOT / f'configs/pretrain/{name}.py'
    stated = re.search(r'^Paper .*', path.read_text(), re.MULTILINE)[0]
    paper = load_config(path).paper
    pairs = zip(paper.top1_error, paper.top5_error, strict=True)
    ours = [(f'{top1:.2f}', f'{top5:.2f}') for top1, top5 in pairs]
    assert re.findall(r'([\d.]+) / ([\d.]+) %', stated) == ours


def test_every_table_has_all_its_rows() -> None:
    """Also without records: a row and its number of lines, or one, for each config."""
    papers = {path.stem: load_config(path).paper for path in ROOT.glob('configs/pretrain/*.py')}
    assert {*TABLE_4} == {name for name, paper in papers.items() if 'top1_error' in paper}
    for name, count in (('3', 24 * 3), ('4', 9 * 3), ('1', 12), ('schedules', 6)):
        assert len(paper_table(name, []).rows) == count


def test_the_committed_runs_of_table_3_have_the_settings_of_their_configs() -> None:
    records = read_records(ROOT / CIFAR / 'results/table3.jsonl')
    names = {f'resnet20_{name}' for name in ('bl', 'se', 'sd_t2', 'sd_t3')}
    assert {r['config'] for r in records} == names | {'resnet32_bl', 'resnet32_sd_t3'}
    derived = ['algorithm.generations', 'algorithm.taught_after', 'param_scheduler', 'world_size']
    derived += ['data', 'data_seed', 'precision', 'randomness']
    for record in records:
        ours = identity_of(load_config(CIFAR / f'{record["config"]}.py'), NOT_IDENTITY)
        assert differences(record['identity'], ours, derived) == {}
