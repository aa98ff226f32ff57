"""What a run learnt from, as far as whoever uses it has to know; kept in its folder when training starts."""

import dataclasses
import json
from pathlib import Path

from cspine_jax.config import Config
from cspine_jax.data.tables import PHANTOM
from cspine_jax.errors import DataError
from cspine_jax.training.workdir import read_json, write_text

FILE = "learnt.json"


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Of a run.

    Attributes:
        phantom: its studies, and those of the run that it started from, are synthetic.
        drawn_odds: by how much drawing raised the odds of a positive example, see `metrics.clinical.drawn_odds`.
    """

    phantom: bool
    drawn_odds: float = 1.0


def keep_learnt(workdir: Path, learnt: Learnt) -> None:
    """Writes `W/learnt.json` where it is not there."""
    if not (workdir / FILE).exists():
        write_text(workdir / FILE, json.dumps(dataclasses.asdict(learnt)) + "\n")


def learnt_from_phantoms(workdir: Path, config: Config) -> bool:
    """Whether all that a run, and the one it started from, has seen is synthetic.

    Args:
        workdir: of the run.
        config: of the run; says where its data were, should an older version have kept no more.
    """
    learnt = read_learnt(workdir)
    if learnt is not None:
        return learnt.phantom
    folder = config.data.manual_dir
    return not folder or (Path(folder).expanduser() / PHANTOM).is_file()


def read_learnt(workdir: Path) -> Learnt | None:
    """What `keep_learnt` wrote; None for a run of an older version.

    Raises:
        DataError: the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    fix = "delete it: what can be known without it is found again"
    there = read_json(path, fix)
    try:
        return Learnt(bool(there["phantom"]), float(there["drawn_odds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error!r} where phantom and drawn_odds belong; {fix}") from error
