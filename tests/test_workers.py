"""Worker processes end with their parent."""

import os
import signal
import subprocess
import sys
import time


def test_workers_die_with_a_parent_that_is_killed():
    code = """
import os, time
from cspine_jax.workers import process_pool
if __name__ == "__main__":
    with process_pool(2) as pool:
        busy = [pool.submit(time.sleep, 600) for _ in range(2)]
        print(*pool._processes, flush=True)
        time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    time.sleep(2.0)  # they have to start before they can notice
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
