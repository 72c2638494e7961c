"""The report page: every table and figure is there, agrees with the records, works in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from copy import deepcopy
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.studies.report_page import extra_cost, find_runs, write_report
from downstream.studies.tables import transfer_table
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_records
from pretrain.studies.paper_tables import TITLES
from tests.conftest import ROOT

RECORDS = read_records(ROOT / 'configs/small/results/bccd.jsonl')
PRETRAINED = [r for r in RECORDS if r['task'] == 'classification']
FINE_TUNED = [r for r in RECORDS if r['task'] == 'detection']
METHODS = read_records(ROOT / 'configs/pretrain/cifar100/results/methods_short.jsonl')
METHODS = [r for r in METHODS if r['label'] in ('BL', 'SD T=3', 'BAN')]
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
RED, BLUE = (220, 30, 30), (30, 30, 220)


class Page(HTMLParser):
    """The elements of a page: (name, attributes, text right after the tag)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append([tag, dict(attributes), ''])

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1][2] += data

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(found, text.strip()) for name, found, text in self.elements if name == tag]

    def tables(self) -> dict[str, list[list[str]]]:
        """The cells of each row, by caption."""
        found, rows = {}, []
        for name, _, text in self.elements:
            if name == 'span':
                rows = found.setdefault(text.strip(), [])
            elif name == 'tr':
                rows.append([])
            elif name in ('th', 'td'):
                rows[-1].append(text.strip())
        return found


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with the committed records; pretraining runs have logs, and fine-tuning runs have
    pictures: red ground truth beside blue predictions."""
    root = tmp_path_factory.mktemp('work')
    for number, record in enumerate([*RECORDS, *METHODS]):
        folder = root / f'run{number:02}'
        folder.mkdir()
        (folder / 'run.json').write_text(json.dumps(record))
        if record['task'] == 'classification':
            log = folder / '20260101_000000/vis_data/scalars.json'
            log.parent.mkdir(parents=True)
            count = sum(entry['iterations'] for entry in record['history'])
            lines = [{'iter': i, 'loss': 2.0, 'kl': 0.1, 'lr': 0.1} for i in range(1, count, 10)]
            log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        else:
            (folder / 'pictures').mkdir()
            for name in ('a', 'b'):
                both = Image.new('RGB', (1200, 400), BLUE)
                both.paste(RED, (0, 0, 600, 400))
                both.save(folder / f'pictures/{name}.png')
    return root


@pytest.fixture(scope='module')
def html(work_dir: Path) -> str:
    write_report([work_dir], work_dir / 'report.html')
    return (work_dir / 'report.html').read_text()


def test_every_part_is_there(html: str) -> None:
    page = Page(html)
    titles = [text for _, text in page.all('h2')]
    assert titles == [
        'Transfer',
        'Pretraining',
        'Curves',
        'Cost',
        'Settings',
        'Pictures',
        'Runs',
        'Environment and provenance',
    ]
    tables = page.tables()
    for title in ('Transfer (Table 5)', *(f'{TITLES[name]}, 4 epochs' for name in ('1', '3'))):
        assert title in tables
    # The header, and each run once.
    assert (
        len(tables['All runs'])
        == len(tables['Where each run comes from'])
        == 1 + len(RECORDS) + len(METHODS)
    )
    captions = [text for _, text in page.all('figcaption')]
    for part in ('Gain over BL', 'test errors', 'loss', 'entropy', 'agreement', 'learning rate'):
        assert any(part in caption for caption in captions), part


def test_tables_say_what_the_records_say(html: str) -> None:
    tables = Page(html).tables()
    lines = str(transfer_table(FINE_TUNED)).splitlines()
    cells = [[cell.strip() for cell in line[1:-1].split('|')] for line in lines if line[:1] == '|']
    assert tables['Transfer (Table 5)'] == [cells[0], *cells[2:]]
    assert ' [' in str(cells)  # an interval
    network = f'ResNet-18 on {PRETRAINED[0]["data"]["train"]["count"]:,} images'
    header, *rows = tables[f'{network}: settings that differ']
    settings = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert settings['algorithm.teacher_weight']['BL'] == '0.0'
    assert settings['algorithm.teacher_weight']['SD'] == '1.0'
    header, *rows = tables[f'{network}: cost']
    cost = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cost['BL']["teacher's extra, paper"] == cost['BL']['measured'] == '–'
    assert cost['SD']["teacher's extra, paper"] == '+16.7 %'
    header, *rows = tables['Versions']
    assert dict(rows)['mmengine'] == '0.11.0rc3'


def test_a_label_is_any_text(tmp_path: Path) -> None:
    """A label may be the name of a column, or hold the cell separator of Markdown."""
    labels = {r['label']: r['label'] for r in RECORDS} | {'BL': 'setting', 'SD': 'a|b'}
    named = [r | {'label': labels[r['label']]} for r in RECORDS]
    (tmp_path / 'set.jsonl').write_text(''.join(f'{json.dumps(record)}\n' for record in named))
    write_report([tmp_path / 'set.jsonl'], tmp_path / 'page.html')
    tables = Page((tmp_path / 'page.html').read_text()).tables()
    (caption,) = (c for c in tables if c.startswith('faster_rcnn') and 'that differ' in c)
    header, *rows = tables[caption]
    assert header == ['setting', *sorted(labels.values(), key=lambda label: label)]
    assert all(len(row) == len(header) for row in rows)
    assert {'a|b', 'setting'} <= {row[1] for row in tables['Transfer (Table 5)'][1:]}


def test_extra_cost_against_plain_sums() -> None:
    """One epoch of three has a teacher; its iterations take 0.5 s instead of 0.4 s."""
    algorithm = {'teacher_weight': 1.0, 'fresh_student': False, 'generations': [2, 1]}
    record = {
        'identity': {'algorithm': algorithm | {'taught_after': 2}},
        'device': 'CPU',
        'world_size': 1,
        'generations': [
            {'generation': 1, 'seconds_per_iter': 0.4},
            {'generation': 2, 'seconds_per_iter': 0.5},
        ],
        'history': [
            {'generation': 1, 'iterations': 10},
            {'generation': 1, 'iterations': 10},
            {'generation': 2, 'iterations': 10},
        ],
    }
    claimed, measured = extra_cost(record)
    assert claimed == pytest.approx(1 / 9)
    assert measured == pytest.approx((20 * 0.4 + 10 * 0.5) / (30 * 0.4) - 1)
    # No teacher; a teacher from the start, such as another run's snapshot; whole generations.
    for other in ({'teacher_weight': 0.0}, {'taught_after': 0}, {'fresh_student': True}):
        record['identity']['algorithm'] = algorithm | {'taught_after': 2} | other
        assert extra_cost(record) is None


def test_runs_of_one_label_and_two_lengths_have_a_row_each(tmp_path: Path) -> None:
    long = json.loads(json.dumps(next(r for r in PRETRAINED if r['label'] == 'SD')))
    short = json.loads(json.dumps(long))
    short['identity']['algorithm']['generations'] = [3]
    short |= {'history': long['history'][:3], 'generations': long['generations'][:1]}
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in (long, short, long)))
    write_report([tmp_path / 'a.jsonl'], tmp_path / 'out.html')
    tables = Page((tmp_path / 'out.html').read_text()).tables()
    rows = costs(tables)
    assert [(row['run'], row['n']) for row in rows] == [('SD', '2'), ('SD', '1')]
    of_second = [row['s/iteration, generation 2'] for row in rows]
    assert [value == '–' for value in of_second] == [False, True]


def costs(tables: dict[str, list[list[str]]]) -> list[dict[str, str]]:
    """The rows of the one table of costs, as dicts."""
    ((header, *rows),) = (table for name, table in tables.items() if name.endswith(': cost'))
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_seconds_of_different_devices_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    slow, fast = (json.loads(json.dumps(PRETRAINED[0])) for _ in range(2))
    fast['device'], fast['identity']['randomness']['seed'] = 'another', 99
    for entry in fast['history']:
        entry['seconds'] /= 10
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in (slow, fast)))
    write_report([tmp_path / 'a.jsonl'], tmp_path / 'out.html')
    found = {
        row['device']: row for row in costs(Page((tmp_path / 'out.html').read_text()).tables())
    }
    assert found.keys() == {slow['device'], 'another'}
    for record in (slow, fast):
        row = found[record['device']]
        assert row['seconds'] == f'{sum(entry["seconds"] for entry in record["history"]):.0f}'
        assert (row['n'], row["× device's first row"]) == ('1', '1.00')


def test_runs_of_one_label_and_two_lengths_have_curves_each(tmp_path: Path) -> None:
    runs = [
        json.loads(json.dumps(next(r for r in METHODS if r['label'] == label)))
        for label in ('BL', 'SD T=3')
    ]
    for run in runs:  # of one label
        run['label'] = 'SD'
    runs[0]['identity']['algorithm']['generations'] = [3]
    *runs[0]['history'], last = runs[0]['history']
    runs[0]['history'][-1]['metrics'] = last['metrics']
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in runs))
    write_report([tmp_path / 'a.jsonl'], tmp_path / 'out.html')
    captions = [text for _, text in Page((tmp_path / 'out.html').read_text()).all('figcaption')]
    for length in (3, 4):
        assert any(f'{length} epochs: training and test errors' in caption for caption in captions)


@pytest.mark.parametrize('lost', ['the time of an epoch', 'an epoch', 'everything'])
def test_a_finished_run_without_its_whole_cost_is_named(lost: str, tmp_path: Path) -> None:
    """It started from a checkpoint without a record, so its own record lacks earlier epochs."""
    records = [json.loads(json.dumps(r)) for r in PRETRAINED if r['label'] in ('BL', 'SD')]
    for record in records:
        if record['label'] == 'SD' or lost == 'everything':
            if lost == 'an epoch':
                del record['history'][0]
            else:
                del record['history'][0]['iterations'], record['history'][0]['seconds']
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
    write_report([tmp_path / 'a.jsonl'], tmp_path / 'out.html')
    page = Page((tmp_path / 'out.html').read_text())
    (note,) = (text for _, text in page.all('p') if 'cost of' in text)
    for record in records:
        seed = record['identity']['randomness']['seed']
        named = f'{record["label"]} with seed {seed}' in note
        assert named == (record['label'] == 'SD' or lost == 'everything')
    rows = [rows for caption, (_, *rows) in page.tables().items() if caption.endswith(': cost')]
    assert [row[0] for table in rows for row in table] == ['BL'] * (lost != 'everything')


def test_a_run_is_shown_once_however_it_is_named(
    work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work_dir)
    lines = [(work_dir / f'run{number:02}/run.json').read_text() for number in (0, 1)]
    collected = work_dir / 'set.jsonl'
    collected.write_text('\n'.join(json.dumps(json.loads(line)) for line in lines))
    (tmp_path / 'linked').symlink_to(work_dir)
    sources = [work_dir, tmp_path, Path(), Path('run00'), Path('run00/run.json'), collected]
    runs = find_runs([*sources, Path('set.jsonl')])
    assert len(runs) == len(RECORDS) + len(METHODS) + len(lines)
    assert sum(run.folder is None for run in runs) == len(lines)
    collected.unlink()


def test_pictures_show_the_truth_and_each_backbone(html: str) -> None:
    labels = list(dict.fromkeys(record['label'] for record in FINE_TUNED))
    images = Page(html).all('img')
    names = [found['alt'].split(', ')[-1] for found, _ in images]
    assert names == 2 * ['ground truth', *labels]
    for (found, _), colour in zip(images[:2], (RED, BLUE), strict=True):
        data = base64.b64decode(found['src'].removeprefix('data:image/jpeg;base64,'))
        image = Image.open(io.BytesIO(data))
        assert image.size == (480, 320) == (int(found['width']), int(found['height']))
        assert max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), colour, strict=True)) < 9


def test_pictures_are_of_the_first_run_that_has_some(tmp_path: Path) -> None:
    runs = [r for r in FINE_TUNED if r['label'] == 'BL'][:2]
    for number, record in enumerate(runs):
        (tmp_path / f'run{number}/pictures').mkdir(parents=True)
        (tmp_path / f'run{number}/run.json').write_text(json.dumps(record))
    (tmp_path / 'run0/pictures').rmdir()
    Image.new('RGB', (60, 20), BLUE).save(tmp_path / 'run1/pictures/a.png')
    write_report([tmp_path], tmp_path / 'out.html')
    images = Page((tmp_path / 'out.html').read_text()).all('img')
    assert [found['alt'].split(', ')[-1] for found, _ in images] == ['ground truth', 'BL']


@pytest.mark.parametrize('size', [0, 40, 200])
def test_a_damaged_picture_is_named_and_left_out(size: int, tmp_path: Path) -> None:
    """A run that was killed may have left a part of it."""
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'run.json').write_text(json.dumps(FINE_TUNED[0]))
    noise = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    for name in 'ab':
        Image.fromarray(noise).save(tmp_path / f'pictures/{name}.png')
    whole = (tmp_path / 'pictures/a.png').read_bytes()
    (tmp_path / 'pictures/a.png').write_bytes(whole[:size])
    write_report([tmp_path], tmp_path / 'out.html')
    html = (tmp_path / 'out.html').read_text()
    assert f'Left out, because a picture is damaged: {tmp_path}/pictures/a.png.' in html
    names = {found['alt'].split(', ')[1] for found, _ in Page(html).all('img')}
    assert names == {'image b'}


def test_page_needs_nothing_else_and_is_marked_up(html: str) -> None:
    page = Page(html)
    assert set(re.findall(r'https?://[^"/]+', html)) == {'http://www.w3.org'}  # XML namespaces
    assert not page.all('script')
    sources = [found['src'] for found, _ in page.all('img')]
    assert all(source.startswith('data:') for source in sources)
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert sorted(identifiers) == sorted({*identifiers})
    assert {*targets} <= {*identifiers}
    assert len(page.all('caption')) == len(page.all('table')) == len(page.all('thead'))
    assert all('scope' in found for found, _ in page.all('th'))
    assert all(found['role'] == 'img' and found['aria-label'] for found, _ in page.all('svg'))
    for rows in page.tables().values():
        assert len({len(row) for row in rows}) == 1


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """A .jsonl file with the records of fine-tuning runs."""
    path = tmp_path / 'records.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in FINE_TUNED))
    return path


def test_a_set_of_records_and_a_run_that_has_just_begun(records_file: Path, tmp_path: Path) -> None:
    """Neither has pictures or logs; a run in two sources is shown once."""
    record = PRETRAINED[0] | {'status': 'running', 'history': [], 'generations': []}
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/run.json').write_text(json.dumps(record))
    write_report([records_file, tmp_path, tmp_path / 'begun'], tmp_path / 'out.html')
    page = Page((tmp_path / 'out.html').read_text())
    assert len(page.tables()['All runs']) == 1 + len(FINE_TUNED) + 1
    assert not {'Pictures', 'Curves', 'Cost'} & {text for _, text in page.all('h2')}


def test_a_run_that_goes_on_shows_the_mini_generations_that_have_ended(tmp_path: Path) -> None:
    collected = ROOT / 'configs/pretrain/cifar100/results/table3.jsonl'
    taught = (r for r in read_records(collected) if r['config'] == 'resnet20_sd_t3')
    record = next(taught) | {'status': 'running'}
    record['history'] = [entry for entry in record['history'] if entry['epoch'] <= 41]
    record['generations'] = record['generations'][:1]
    record.pop('ensemble', None)
    (tmp_path / 'run.json').write_text(json.dumps(record))
    write_report([tmp_path], tmp_path / 'out.html')
    tables = Page((tmp_path / 'out.html').read_text()).tables()
    cells = dict(
        zip(
            *[
                row
                for row in tables['Errors on CIFAR-100 (Table 3)']
                if 'M_#L1' in row or ('ours' in row and '1' in row)
            ],
            strict=True,
        )
    )
    assert cells['M_#L1'] == f'{record["generations"][0]["last"]["top1_error"]:.2f}'
    assert not any(title.startswith('Errors of all') for title in tables)


@pytest.mark.parametrize('status', ['running', 'finished'])
def test_a_run_of_another_length_hides_no_table(status: str, tmp_path: Path) -> None:
    other = next(deepcopy(r) for r in METHODS if r['label'] == 'BL') | {'status': status}
    other['identity']['algorithm']['generations'] = [1]
    records = ''.join(json.dumps(record) + '\n' for record in (*METHODS, other))
    (tmp_path / 'records.jsonl').write_text(records)
    write_report([tmp_path / 'records.jsonl'], tmp_path / 'out.html')
    page = (tmp_path / 'out.html').read_text()
    assert 'do not belong in one table' not in page
    titles = Page(page).tables().keys()
    assert {
        f'{TITLES["3"]}, 4 epochs',
        f'{TITLES["3"]}, 1 epoch',
        f'{TITLES["1"]}, 4 epochs',
    } <= titles


def test_all_runs_have_the_numbers_of_their_records(html: str) -> None:
    header, *rows = Page(html).tables()['All runs']
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    ends = [(r['label'], r['generations'][-1]) for r in FINE_TUNED]
    assert sorted((c['label'], c['last'], c['best']) for c in shown if c['metric'] == 'mAP') == (
        sorted((n, *(f'{100 * e[k]["mAP"]:.2f}' for k in ('last', 'best'))) for n, e in ends)
    )


def test_records_that_do_not_fit_are_told(records_file: Path, tmp_path: Path) -> None:
    """The page has the error in place of the table, and is written."""
    records_file.write_text(records_file.read_text() * 2)
    write_report([records_file], tmp_path / 'out.html')
    assert 'the same seed, 0: keep only one of line 1 of' in (tmp_path / 'out.html').read_text()


def test_baseline_is_the_one_that_was_asked_for(records_file: Path, tmp_path: Path) -> None:
    write_report([records_file], tmp_path / 'out.html', ['SD', 'BL'])
    rows = Page((tmp_path / 'out.html').read_text()).tables()['Transfer (Table 5)']
    assert [row[1] for row in rows][:3] == ['backbone', 'SD', 'BL']
    assert any(cell.startswith('gain over SD') for cell in rows[0])


def test_mistakes_are_one_sentence(records_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'There is no run\.json in .*: name the work directory'):
        write_report([tmp_path], tmp_path / 'out.html')
    with pytest.raises(UserError, match='is a folder: name the file'):
        write_report([records_file], tmp_path)
    (tmp_path / 'run.json').write_text('{')
    with pytest.raises(UserError, match=r'run\.json is not the record of a run'):
        write_report([tmp_path], tmp_path / 'out.html')
    assert not (tmp_path / 'out.html').exists()


def test_runs_stand_in_the_order_of_the_tables(records_file: Path) -> None:
    lines = records_file.read_text().splitlines()
    records_file.write_text('\n'.join(reversed(lines)))
    labels = [run.label for run in find_runs([records_file])]
    assert list(dict.fromkeys(labels))[:2] == ['BL', 'SD']


# Chromium's windows are at least 500 pixels wide; a frame inside can have any width.
FRAMES = """<!DOCTYPE html>
<body style="margin: 0">
<script>
const found = [];
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const boxes = (name) =>
    [...page.querySelectorAll(name)].map((element) => element.getBoundingClientRect());
  found.push({
    inner: view.innerWidth,
    width: page.documentElement.scrollWidth,
    shown: ['svg', 'table', 'img'].map((name) => boxes(name).filter((b) => b.width > 40).length),
    loaded: [...page.images].every((image) => image.naturalWidth > 0),
    small: Math.min(...boxes('svg').map((box) => box.width)),
    ink: view.getComputedStyle(page.querySelector('svg text')).fill,
    paper: view.getComputedStyle(page.body).backgroundColor,
  });
  document.body.dataset.found = JSON.stringify(found);
}
</script>"""
IFRAME = """<iframe style="width: {width}px; height: 900px; border: 0" onload="measure(this)"
srcdoc="{page}"></iframe>"""


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium: apt-get install chromium')
@pytest.mark.parametrize(('widths', 'dark'), [((1280, 360), False), ((800,), True)])
def test_page_in_a_browser(widths: tuple[int, ...], dark: bool, html: str, tmp_path: Path) -> None:
    """No errors, nothing hidden, no horizontal scrolling, text in contrast to the background."""
    frames = (IFRAME.format(width=width, page=escape(html)) for width in widths)
    (tmp_path / 'page.html').write_text(FRAMES + ''.join(frames))
    result = subprocess.run(
        [
            CHROMIUM,
            *('--headless=new', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr'),
            f'--user-data-dir={tmp_path}/profile',
            '--window-size=1400,900',
            f'--blink-settings=preferredColorScheme={int(not dark)}',
            *('--virtual-time-budget=5000', '--dump-dom', f'file://{tmp_path}/page.html'),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert 'CONSOLE' not in result.stderr, result.stderr
    pages = json.loads(Page(result.stdout).all('body')[0][0]['data-found'])
    assert sorted(page['inner'] for page in pages) == sorted(widths)
    expected = [len(Page(html).all(name)) for name in ('svg', 'table', 'img')]
    for page in pages:
        assert page['width'] <= page['inner']
        assert (page['shown'], page['loaded']) == (expected, True)
        assert page['small'] > 250
        ink, paper = (
            sum(map(int, re.findall(r'\d+', page[part])[:3])) for part in ('ink', 'paper')
        )
        assert (ink > paper) == dark
        assert abs(ink - paper) > 400
