"""Worker processes, one study each at a time."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading

from cspine_jax.memory import keep_freed_memory


def process_pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of fresh processes: not forks, since the caller may run jax, whose threads do not survive a fork.

    A worker leaves Ctrl-C to its parent, which lets it finish its study, and dies when its parent does.
    """
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)


def _start() -> None:
    keep_freed_memory()  # a study's arrays are freed and asked for again by the hundred: a fifth of making a phantom
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
