"""How long a call takes that is made again and again."""

import time
from collections.abc import Callable
from typing import Any


def seconds_a_call(run: Callable[[], Any], calls: int) -> float:
    """Mean seconds of `calls` calls of `run` in a row, after one that is not counted."""
    run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
