import signal
from collections.abc import Iterator

import pytest

from pretrain.runs.saving import EXIT_CODES


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """No signal is ignored, as some are in a process that a shell has put in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in EXIT_CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
