"""The READMEs say what is so: tables, links, names and commands."""

import argparse
import ast
import importlib
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import pytest
import yaml

import pretrain
from downstream.studies.metafiles import metafiles
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_records
from pretrain.runs.saving import EXIT_CODES
from tests.conftest import ROOT
from tools.readme_tables import READMES, with_tables

CONTRIBUTING = ROOT / 'CONTRIBUTING.md'
by_path = pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))

# Each command of a README is parsed by its tool, below. This is where it is run as a whole, at test
# size, or why it is not.
RUN_BY = {
    'bash tools/demo.sh': 'takes minutes; smaller: tests/downstream/studies/test_transfer.py',
    'bash tools/gpu_check.sh': 'takes 25 minutes; tests/tools/test_gpu_check.py reads its list',
    'bash tools/soak.sh': 'takes minutes; tests/tools/test_soak.py is the same, shorter',
    'bash tools/test.sh': 'runs these tests',
    'source': 'a builtin of bash',
    'tools/dist_train.sh': 'tests/tools/test_train.py',
    'tools/slurm_train.sh': 'tests/tools/test_train.py',
    'python -m pretrain': 'tests/test_wheel.py',
    'python tools/benchmark.py': 'tests/pretrain/studies/ and tests/downstream/ call all it calls',
    'python tools/collect_records.py': 'tests/tools/test_tables.py',
    'python tools/doctor.py': 'tests/downstream/test_doctor.py calls all it calls',
    'python tools/export.py': 'tests/pretrain/test_export.py calls all it calls',
    'python tools/import_backbone.py': 'tests/tools/test_import_backbone.py',
    'python tools/plot_curves.py': 'tests/tools/test_tables.py',
    'python tools/predict.py': 'tests/downstream/test_predict.py calls all it calls',
    'python tools/prepare_data.py': 'tests/tools/test_prepare_data.py',
    'python tools/report.py': 'tests/downstream/studies/test_report_page.py calls all it calls',
    'python tools/readme_tables.py': 'this file calls all it calls',
    'python tools/scale_features.py': 'tests/downstream/test_feature_scale.py calls all it calls',
    'python tools/similarity.py': 'tests/pretrain/studies/test_similarity.py calls all it calls',
    'python tools/sweep.py': 'tests/pretrain/studies/test_sweep.py calls all it calls',
    'python tools/table.py': 'tests/tools/test_tables.py',
    'python tools/test.py': 'tests/downstream/test_evaluate.py calls all it calls',
    'python tools/train.py': 'tests/tools/test_train.py',
    'python tools/transfer.py': 'tests/downstream/studies/test_transfer.py calls all it calls',
}


@by_path
def test_tables_are_those_of_the_committed_records(path: Path) -> None:
    text = path.read_text()
    assert with_tables(text) == text, 'run: python tools/readme_tables.py'


def test_metafiles_are_those_of_the_configs_and_records() -> None:
    texts = metafiles(ROOT)
    assert {path for path in texts if not path.exists()} == set(), 'run tools/readme_tables.py'
    assert {path: path.read_text() for path in texts} == texts, 'run: python tools/readme_tables.py'
    assert {*texts} == {*ROOT.glob('configs/**/metafile.yml'), ROOT / 'model-index.yml'}
    for path in ROOT.glob('configs/**/metafile.yml'):
        (collection,) = yaml.safe_load(texts[path])['Collections']
        assert collection['License'] == 'apache-2.0'
        assert collection['Paper'].keys() >= {'Title', 'URL'}
    bccd = yaml.safe_load(texts[ROOT / 'configs/small/metafile.yml'])['Models']
    (model,) = (m for m in bccd if m['Name'] == 'faster_rcnn_r18_bccd')
    (result,) = model['Results']
    assert result['Metrics']['mAP (BL)'] == 55.12  # as in the table
    assert result['Dataset'] == 'bccd-voc (292 train, 72 val images)'


def test_prose_states_table_3_as_the_records_do() -> None:
    records = read_records(ROOT / 'configs/pretrain/cifar100/results/table3.jsonl')
    for config in ('resnet20_bl', 'resnet20_se', 'resnet20_sd_t3'):
        runs = [r['generations'][-1]['last'] for r in records if r['config'] == config]
        errors = [metrics['top1_error'] for metrics in runs]
        stated = f'{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f} '
        assert stated in READMES[0].read_text()


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == pretrain.__version__
    assert f'## {pretrain.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_supported_pythons_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    versions = [c.rpartition(' ')[2] for c in project['classifiers'] if ':: 3.' in c]
    first, *_, last = [int(version.split('.')[1]) for version in versions]
    assert versions == [f'3.{minor}' for minor in range(first, last + 1)]
    assert project['requires-python'] == f'>=3.{first},<3.{last + 1}'
    setup = (ROOT / 'tools/setup.sh').read_text()
    assert f'(3, {first}) <= sys.version_info < (3, {last + 1})' in setup
    named = f'Python {", ".join(versions[:-1])} or {versions[-1]}'
    assert named in READMES[0].read_text() and named in setup
    assert (3, first) <= sys.version_info < (3, last + 1)


def test_every_table_ends_and_every_record_is_used() -> None:
    text = ''.join(path.read_text() for path in READMES)
    assert text.count('<!-- tools/') == text.count('<!-- end -->') > 0
    for records in ROOT.glob('configs/**/results/**/*'):
        assert records.is_dir() or str(records.relative_to(ROOT)) in text, records


def test_main_readme_is_short_and_no_line_of_prose_is_long() -> None:
    assert len(READMES[0].read_text().splitlines()) <= 130
    for path in READMES:
        for line in re.sub(r'<!--.*?<!-- end -->', '', path.read_text(), flags=re.S).splitlines():
            assert line.startswith('|') or len(line) <= 120, f'{path}: {line}'


@by_path
def test_links_and_names_exist(path: Path) -> None:
    text = path.read_text()
    for link, heading in re.findall(r'\]\((?!http)([^)#]*)(?:#([^)]+))?\)', text):
        assert (path.parent / link).exists(), link
        if heading:
            target = (path.parent / link).read_text() if link else text
            headings = re.findall(r'^#+ (.+)$', target, re.MULTILINE)
            assert heading in [h.lower().replace(' ', '-') for h in headings], heading
    for name in re.findall(r'\b(?:configs|tools|tests)/[\w/]+\.(?:py|sh|json)\b', text):
        assert (ROOT / name).exists(), name


def test_each_tool_is_named() -> None:
    named = re.findall(r'^\| \[([\w.]+)\]', (ROOT / 'tools/README.md').read_text(), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / 'tools').glob('*.*[yh]'))


def test_files_that_contributors_change_exist() -> None:
    named = re.findall(r'`((?:pretrain|downstream|configs)/[^`]+)`', CONTRIBUTING.read_text())
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize('folder', ['pretrain', 'pretrain/cifar100', 'downstream', 'small', 'demo'])
def test_each_config_is_named_beside_it_with_the_papers_number(folder: str) -> None:
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    names = re.findall(r'`([\w{},]+\.py)`', text) + re.findall(r'\[(\w+\.py)\]\(', text)
    named = {name for pattern in names for name in words(pattern)}
    assert named == {path.name for path in (ROOT / 'configs' / folder).glob('*.py')}
    for name, *numbers in re.findall(
        r'^\| \[(\w+\.py)\].* ([\d.]+) \| ([\d.]+) \|$', text, re.MULTILINE
    ):
        paper = load_config(ROOT / 'configs' / folder / name).paper
        if folder == 'downstream':
            expected = [paper.BL, paper.SD]
        else:
            expected = [paper.top1_error[-1], paper.top5_error[-1]]
        assert [float(number) for number in numbers] == expected, name


def test_settings_that_people_change_exist() -> None:
    section = (ROOT / 'configs/README.md').read_text().split('## What people change')[1]
    table = section.split('## ')[0]
    first_cells = (row.split('|')[1] for row in table.splitlines() if row.startswith('|'))
    keys = re.findall(r'`([\w.]+)`', ''.join(first_cells))
    assert len(keys) > 12
    folder = ROOT / 'configs'
    examples = 'pretrain/r152_sd', 'downstream/faster_rcnn_r50_voc07'
    examples += ('downstream/deeplabv3_r50_voc12aug',)

    def has(example: str, key: str) -> bool:
        try:
            return bool(load_config(folder / f'{example}.py', [f'{key}=1']))
        except UserError as error:  # a list in place of 1
            return 'has no key' not in str(error)

    assert [key for key in keys if not any(has(example, key) for example in examples)] == []


def test_the_example_of_a_config_of_your_own_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / 'configs/README.md').read_text()
    _, name, lines = re.search(r'```python\n# (\S+/)(\w+\.py), .*\n([^`]+)```', text).groups()
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / name).write_text(lines)
    monkeypatch.chdir(tmp_path)
    config = load_config(f'own/{name}')
    assert (config.epochs, config.model.network.num_classes) == (30, 10)


def test_exit_codes_are_so() -> None:
    text = (ROOT / 'configs/README.md').read_text()
    for number, code in EXIT_CODES.items():
        assert re.search(rf'^\| {number.name}\b.* \| {code}\b', text, re.MULTILINE), number


# Where each row of "What happens when something fails" in configs/README.md is tested.
RUNS = 'pretrain/runs/test_'
FAULTS = {
    'the run is killed (SIGKILL, power cut)': 'tools/test_stopping.py::test_a_process_is_killed',
    'you press Ctrl-C, or the scheduler ends the job': f'{RUNS}saving.py::test_a_stop_changes',
    'the launcher of several': 'tools/test_stopping.py::test_two_processes_stop_together',
    'the disk is full': f'{RUNS}saving.py::test_a_full_disk',
    'a bit flips': f'{RUNS}resume.py::test_a_damaged_checkpoint_is_named_and_the_one_before',
    'all checkpoints of a run': f'{RUNS}resume.py::test_a_damaged_checkpoint_is_named',
    '`snapshot_1.pth` is damaged': f'{RUNS}saving.py::test_a_snapshot_that_is_needed_later',
    '`run.json` is missing or damaged': f'{RUNS}record.py::test_a_damaged_record_is_named',
    'the loss is not finite': f'{RUNS}record.py::test_loss_that_is_not_finite_stops_the_run',
    'an update makes a weight infinite': f'{RUNS}saving.py::test_a_checkpoint_that_is_not_finite',
    'a setting, the data or': f'{RUNS}resume.py::test_a_resumed_run_keeps_each_setting',
    'the nodes of a run': f'{RUNS}start.py::test_nodes_with_other_images_or_gpus',
    'a second run begins in the folder': f'{RUNS}start.py::test_a_folder_has_one_run',
    'a run without `--resume`': 'tools/test_train.py::test_a_run_is_not_started_over_by_accident',
    'nothing can be written': f'{RUNS}start.py::test_where_a_run_can_be_written',
    'an image, box, mask or list': 'downstream/test_build.py::test_all_that_is_wrong_is_named',
    'a checkpoint or backbone of another': f'{RUNS}resume.py::test_a_file_of_another_program',
    'a file carries code': f'{RUNS}checkpoint.py::test_code_in_a_checkpoint_does_not_run',
    'memory, shared memory or open files': f'{RUNS}cli.py::test_what_the_machine_has_too_little_of',
    'there are GPUs that torch': f'{RUNS}processes.py::test_gpus_that_cannot_be_used_are_no_cpu',
    'a launcher left': f'{RUNS}start.py::test_what_launchers_tell',
    'a tool of many runs gets': f'{RUNS}launch.py::test_a_signal_stops_the_runs_and_waits',
    'a file or folder is where': 'pretrain/test_export.py::test_only_a_backbone_file_is_replaced',
    'a run of a sweep fails': f'{RUNS}launch.py::test_no_run_begins_after_a_failure',
    'the program has a bug': f'{RUNS}cli.py::test_a_fault_of_the_program_says_where',
}


def test_what_happens_when_is_so() -> None:
    """Each row has its test, and what it quotes is what the program prints."""
    section = (ROOT / 'configs/README.md').read_text().split('## What happens when')[1]
    rows = re.findall(r'^\| (.+?) \| (.+?) \| .+ \|$', section.split('\n\n')[2], re.MULTILINE)[1:]
    texts = [text for folder in ('pretrain', 'downstream') for text in messages(ROOT / folder)]
    for (fault, seen), (begin, test) in zip(rows, FAULTS.items(), strict=True):
        assert fault.startswith(begin)
        path, name = test.split('::')
        assert f'def {name}' in (ROOT / 'tests' / path).read_text(), test
        for quoted in re.findall(r'`([^`]+)`', seen):
            assert any(quoted in text for text in texts), quoted


def messages(folder: Path) -> Iterator[str]:
    """The strings in the code of a folder, with … for each value that is filled in."""
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else '…' for p in node.values)
                yield ''.join(parts)


class ParsedError(Exception):
    """The arguments of a command are in order."""


@by_path
def test_commands_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
    for command in commands(path.read_text()):
        assert any(' '.join(command).startswith(known) for known in RUN_BY), command
        match command:
            case ['tools/dist_train.sh', config, gpus, *rest]:
                module, arguments = 'pretrain.runs.start', [config, '--gpus', gpus, *rest]
            case ['python', '-m', 'pretrain', *arguments]:
                module = 'pretrain.__main__'
            case ['python', '-m', module, *arguments]:
                pass
            case ['python', tool, *arguments] if tool != 'tools/readme_tables.py':
                module = tool.removesuffix('.py').replace('/', '.')
            case _:
                continue
        monkeypatch.setattr(sys, 'argv', [module, *arguments])
        with pytest.raises(ParsedError):
            importlib.import_module(module).main()


def commands(text: str) -> list[list[str]]:
    """The words of each command of the bash blocks and of the inline code that begins as one."""
    blocks = ''.join(re.findall(r'```bash\n(.*?)```', text, re.DOTALL)).replace('\\\n', ' ')
    lines = blocks.splitlines() + re.findall(r'`((?:python|bash) [^`]+)`', text)
    found = [list(dropwhile(re.compile('[A-Z_]+=').match, words(line))) for line in lines]
    return [command for command in found if command]


def words(line: str) -> list[str]:
    """A line as bash splits it, braces expanded and comments left out."""
    script = f"printf '%s\\0' {line}"
    printed = subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=True)
    return printed.stdout.split('\0')[:-1]
