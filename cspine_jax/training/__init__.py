"""One training loop for every task: sharded, resumable to the bit, never compiling the same thing twice.

The loop (`loop.fit`) knows a task only as an object with `init`, `loss`, `predict` and `metrics` (`task.Task`).
"""
