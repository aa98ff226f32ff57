"""The log of a run: JSON lines, the source of every curve, and TensorBoard event files beside them."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

TIMING = ("seconds", "examples_per_second", "compile_seconds")
"""Fields that differ between two runs of the same experiment; everything else must not."""


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Every whole line of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    lines = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


class Writer:
    """Writes `metrics.jsonl` and `tensorboard/` in a work folder; a context manager.

    Args:
        workdir: made if absent.
        step: the step a resumed run starts from; later lines of the run that died are dropped, so curves are
            continuous and every step is there once. None adds to what is there, whoever else is writing.
        enabled: False on all hosts of a job but the first.
    """

    def __init__(self, workdir: str | Path, step: int | None = 0, enabled: bool | None = None):
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        self.path = Path(workdir) / "metrics.jsonl"
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        purge = None
        if step is not None:
            kept = [line for line in read_lines(self.path) if line["step"] <= step]
            fresh = self.path.with_suffix(".jsonl.tmp")
            fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(fresh, self.path)
            purge = step + 1 if kept else None
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purge)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self._file.close()
            self._board.close()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line: `{"step": 20, "split": "train", "loss": 0.61, ...}`; not-a-number becomes null.

        Args:
            step: steps done.
            split: "train", "validation" or "run".
            values: figures by name.
        """
        if not self.enabled:
            return
        clean = {name: float(x) if math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **clean}) + "\n")
        self._file.flush()
        for name, x in clean.items():
            if x is not None:
                self._board.add_scalar(f"{split}/{name}", x, step)
