"""One progress bar for every long piece of work: steps done, rate and time left, on stderr."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, initial: int = 0, what: str, unit: str = "it"
):
    """A progress bar with time left.

    Args:
        iterable: what to iterate over; None for a bar that is advanced with `.update(n)`.
        total: number of steps where the iterable cannot tell.
        initial: steps already done (a resumed run starts here).
        what: label in front of the bar.
        unit: name of one step.

    Returns:
        A `tqdm` bar. In a log file (no terminal) it refreshes every 10 s instead of ten times a second.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(iterable, total=total, initial=initial, desc=what, unit=unit, mininterval=interval, dynamic_ncols=True)
