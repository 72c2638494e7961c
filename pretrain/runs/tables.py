"""Records to tables: what the tables of both stages have in common."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import UserError
from pretrain.runs.identity import differences
from pretrain.runs.record import read_records

MISSING = 'missing'
NONE = '–'  # a number that does not exist, such as the spread of one run
SHORTENED = 'SHORTENED, not comparable with the paper. '


@dataclass(frozen=True)
class Table:
    """The cells of a table by row, and notes below it. The first ``texts`` columns are no numbers.
    Printed it is Markdown that is aligned as text too.

    Example:
        >>> print(Table(['network', 'error'], [['ResNet-20', '33.57']], notes=['In percent.']))
        | network   | error |
        | ---       |   --: |
        | ResNet-20 | 33.57 |
        <BLANKLINE>
        - In percent.
        <BLANKLINE>
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, str]],
        columns: Sequence[str] = (),
        texts: int = 1,
        notes: Sequence[str] = (),
    ) -> 'Table':
        """A table of cells by the names of their columns, by default the columns of the first row.
        Columns in which no row has more than a dash are left out."""
        empty = {'', NONE}
        header = [c for c in columns or rows[0] if not {row.get(c, '') for row in rows} <= empty]
        return cls(header, [[row.get(c, '') for c in header] for row in rows], texts, notes)

    def __str__(self) -> str:
        rule = ['---' if column < self.texts else '--:' for column in range(len(self.header))]
        # A label may hold the character that parts the cells.
        above, *below = (
            [text.replace('|', r'\|') for text in row] for row in (self.header, *self.rows)
        )
        cells = [above, rule, *below]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for row in cells:
            padded = [
                text.ljust(width) if column < self.texts else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(f'| {" | ".join(padded)} |')
        return '\n'.join([*lines, '', *(f'- {note}' for note in self.notes), ''])


def find_records(
    source: Path, tasks: Sequence[str] = ('classification',), running: bool = False
) -> list[dict]:
    """The records of the tasks in a folder or file, as :func:`pretrain.runs.record.read_records`
    reads them: of finished runs, and with ``running`` of the others as well."""
    records = read_records(source)
    return [r for r in records if (running or r['status'] == 'finished') and r['task'] in tasks]


def collect_records(source: Path, out: Path, running: bool = False) -> int:
    """Write the finished records of ``source``, and with ``running`` the others as well, to the
    ``.jsonl`` file ``out``, one record per line, sorted by config, label and seed, and return how
    many there are.

    Raises:
        UserError: if there is no such record, or ``out`` is not called ``.jsonl``.
    """
    if out.suffix != '.jsonl':
        raise UserError(f'{out} would not be read as records: give it the suffix .jsonl.')
    records = [r for r in read_records(source) if running or r['status'] == 'finished']
    if not records:
        raise UserError(f'There is no record of a {"" if running else "finished "}run in {source}.')
    records.sort(
        key=lambda r: (r['config'], r['label'], r['identity']['randomness']['seed'], json.dumps(r))
    )
    lines = [json.dumps(record, separators=(',', ':')) + '\n' for record in records]
    write_atomically(out, ''.join(lines).encode())
    return len(records)


def check_alike(what: str, settings: Sequence[dict], may_differ: Sequence[str]) -> None:
    """Raise a UserError if runs do not belong in one table: if their ``settings`` differ in other
    keys than ``may_differ`` and those below. The message calls the runs ``what``."""
    for other in settings[1:]:
        if found := differences(settings[0], other, may_differ):
            values = ', '.join(f'{key} ({a} and {b})' for key, (a, b) in found.items())
            raise UserError(
                f'{what} differ in {values}, and do not belong in one table: name the folder of '
                'one set of runs.'
            )


def mean_std(values: Sequence[float]) -> str:
    """``mean ± standard deviation`` with two decimals; the mean alone of a single value."""
    if not values:
        return MISSING
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.2f}{spread}'


def format_p(p: float | None) -> str:
    """A p-value with three decimals; a dash for None."""
    if p is None:
        return NONE
    return f'{p:.3f}' if p >= 0.001 else '<0.001'
