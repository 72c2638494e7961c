"""Which configs are the rows of each table, and which tables a set of records can fill."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.tables import Table
from pretrain.studies.tables import (
    SHARED,
    ended_generations,
    errors_table,
    has_own_teacher,
    table_1,
    table_2,
    table_3,
    table_4,
    teachers_table,
)

CONFIGS = Path('configs/pretrain')
CIFAR = CONFIGS / 'cifar100'
BACKBONES = ('resnet20', 'resnet32', 'resnet56', 'resnet110', 'densenet100', 'densenet190')
METHODS = ('bl', 'kd', 'fitnet', 'net2deeper', 'net2wider', 'fsp', 'label_refinery', 'ban')
METHODS += ('tolerant', 'sd_t2', 'sd_t3', 'symmetric')
SCHEDULES = ('bl', 'sd_t2', 'sd_linear', 'sd_one_cycle', 'sd_rates', 'sd_unequal')
TABLE_3 = ('bl', 'se', 'sd_t2', 'sd_t3')
TABLE_4 = 'r101_bl', 'r101_se', 'r101_sd', 'r152_bl', 'r152_se', 'r152_sd'
TABLE_4 += 'ser101_bl', 'ser101_sd', 'ser152_sd'
ON_RECORDS = {'2': table_2, 'errors': errors_table, 'teachers': teachers_table}
TITLES = {
    '1': 'Methods and their cost (Table 1)',
    '2': 'What teacher and student share (Table 2)',
    '3': 'Errors on CIFAR-100 (Table 3)',
    '4': 'Errors on ImageNet (Table 4)',
    'schedules': 'Schedules',
    'teachers': 'Where the teacher comes from',
    'errors': 'Errors of all pretraining runs',
}


def paper_table(name: str, records: Sequence[dict], backbones: Sequence[str] = BACKBONES) -> Table:
    """A table of the paper, or of any pretraining runs.

    Args:
        name: a key of ``TITLES``.
        records: from :func:`pretrain.runs.tables.find_records`. Unfinished runs appear only in
            Tables 3 and 4, with the mini-generations that have ended.
        backbones: the backbones that Table 3 shows.

    Raises:
        UserError: if a backbone is not in Table 3, or the records do not belong in one table.
    """
    if unknown := [backbone for backbone in backbones if backbone not in BACKBONES]:
        raise UserError(f'Table 3 has no {unknown[0]}: choose from {", ".join(BACKBONES)}.')
    if name not in ('3', '4'):
        records = [r for r in records if r['status'] == 'finished']
    if name in ON_RECORDS:
        return ON_RECORDS[name](records)
    if name == '3':
        paths = [CIFAR / f'{backbone}_{row}.py' for backbone in backbones for row in TABLE_3]
        return table_3(records, [load_config(path) for path in paths])
    if name == '4':
        return table_4(records, [load_config(CONFIGS / f'{row}.py') for row in TABLE_4])
    rows = METHODS if name == '1' else SCHEDULES
    return table_1(records, [load_config(CIFAR / f'resnet20_{row}.py') for row in rows])


def tables_with_records(records: Sequence[dict]) -> Iterator[tuple[str, Sequence[str]]]:
    """The names of the tables that records can fill, each with the ``backbones`` to show: in Table
    3, those with records."""
    finished = [r for r in records if r['status'] == 'finished']
    if finished:
        yield 'errors', BACKBONES
    own = [r for r in records if not SHARED.fullmatch(r['label'])]
    begun = {r['config'] for r in own if ended_generations(r)}
    names = {r['config'] for r in own if r['status'] == 'finished'}

    def of_resnet20(rows: Sequence[str]) -> bool:
        return bool(names & {f'resnet20_{row}' for row in rows if row not in TABLE_3})

    if of_resnet20(METHODS):
        yield '1', BACKBONES
    if any(SHARED.fullmatch(record['label']) for record in finished):
        yield '2', BACKBONES
    if found := [b for b in BACKBONES if begun & {f'{b}_{row}' for row in TABLE_3}]:
        yield '3', found
    if begun & {*TABLE_4}:
        yield '4', BACKBONES
    if of_resnet20(SCHEDULES):
        yield 'schedules', BACKBONES
    if any(map(has_own_teacher, finished)):
        yield 'teachers', BACKBONES
