"""From records to tables: code that the tables of both stages share."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import Contents, UserError, number_of
from pretrain.runs.identity import differences, shortened
from pretrain.runs.record import read_records

MISSING = 'missing'
DASH = '–'  # an undefined number, such as the standard deviation of one run
SHORTENED = "SHORTENED, or another setting than the paper's: not comparable with it. "


@dataclass(frozen=True)
class Table:
    """A table of strings with notes below it. ``str`` gives Markdown whose columns are also aligned
    as plain text: the first ``texts`` columns to the left, the others (numbers) to the right.

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
        """Build a table from rows that map column names to cells. ``columns`` are by default those
        of the first row. Columns that are empty or a dash in every row are left out."""
        empty = {'', DASH}
        header = [c for c in columns or rows[0] if not {row.get(c, '') for row in rows} <= empty]
        return cls(header, [[row.get(c, '') for c in header] for row in rows], texts, notes)

    def __str__(self) -> str:
        rule = ['---' if column < self.texts else '--:' for column in range(len(self.header))]
        # A label may contain the character that separates cells.
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
    """The records of ``tasks`` in a source of :func:`pretrain.runs.record.read_records`: those of
    finished runs, and with ``running`` also those of unfinished ones."""
    records = read_records(source)
    return [r for r in records if (running or r['status'] == 'finished') and r['task'] in tasks]


def collect_records(source: Path, out: Path, running: bool = False) -> int:
    """Write the records of finished runs (with ``running``, of all runs) in ``source``, as for
    :func:`find_records`, to the ``.jsonl`` file ``out``: one per line, sorted by config, label and
    seed. Return their number.

    Raises:
        UserError: if there is no such record, or ``out`` lacks the suffix ``.jsonl``.
    """
    if out.suffix != '.jsonl':
        raise UserError(f'{out} would not be read as records: give it the suffix .jsonl.')
    records = [r for r in read_records(source) if running or r['status'] == 'finished']
    if not records:
        kind = '' if running else 'finished '
        raise UserError(f'There is no record of a {kind}run in {source}: name another folder.')
    records.sort(
        key=lambda r: (r['config'], r['label'], r['identity']['randomness']['seed'], json.dumps(r))
    )
    lines = [json.dumps(record, separators=(',', ':')) + '\n' for record in records]
    write_atomically(out, ''.join(lines).encode())
    return len(records)


def check_alike(what: str, settings: Sequence[dict], may_differ: Sequence[str]) -> None:
    """Raise a UserError if runs do not belong in one table because their ``settings`` differ in
    keys other than ``may_differ`` and those below. The message calls the runs ``what``."""
    for other in settings[1:]:
        if found := differences(settings[0], other, may_differ):
            values = ', '.join(f'{key} ({a} and {b})' for key, (a, b) in found.items())
            raise UserError(
                f'{what} differ in {values}, and do not belong in one table: name the folder of '
                'one set of runs.'
            )


def changed_during_training(records: Sequence[dict]) -> str:
    """A sentence on the settings that ``--accept-change`` changed while runs were trained, with a
    space before it; empty if there are none."""
    changes = Counter(
        f'{c["key"]} from {shortened(c["was"])} to {shortened(c["now"])} after epoch {c["epoch"]}'
        for record in records
        for c in record['accepted_changes']
    )
    listed = '; '.join(f'{text} ({number_of(n, "runs")})' for text, n in changes.items())
    return f' CHANGED DURING TRAINING: {listed}.' if changes else ''


def check_seeds(
    what: str, records: Sequence[Contents], seed_of: Callable[[dict], Hashable]
) -> None:
    """Raise a UserError if two records of the row ``what`` have the same ``seed_of``. The message
    names the files that hold them."""
    seen = {}
    for record in records:
        first = seen.setdefault(seed_of(record), record)
        if first is not record:
            seed = record['identity']['randomness']['seed']
            raise UserError(
                f'Two records of {what} have the same seed, {seed}: keep only one of '
                f'{first.place} and {record.place}.'
            )


def mean_std(values: Sequence[float]) -> str:
    """``mean ± standard deviation`` with two decimals, a single value alone, or ``MISSING``."""
    if not values:
        return MISSING
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.2f}{spread}'


def format_p(p: float | None) -> str:
    """A p-value with three decimals, or four if it rounds to 0.050; a dash for None."""
    if p is None:
        return DASH
    if p < 0.001:
        return '<0.001'
    text = f'{p:.3f}'
    return f'{p:.4f}' if text == '0.050' else text
