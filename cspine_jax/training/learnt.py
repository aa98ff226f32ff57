"""What a run learnt from, as far as whoever uses it has to know; kept in its folder when training starts."""

import dataclasses
import json
from pathlib import Path

from cspine_jax.config import Config, DataConfig
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
        phantom_seeds: of the phantoms among them, as far as known.
    """

    phantom: bool
    drawn_odds: float = 1.0
    phantom_seeds: tuple[int, ...] = ()


def keep_learnt(workdir: Path, learnt: Learnt) -> None:
    """Writes `W/learnt.json`."""
    write_text(workdir / FILE, json.dumps(dataclasses.asdict(learnt)) + "\n")


def learnt_from(workdir: Path, config: Config) -> Learnt:
    """What a run, and the one it started from, has seen.

    Args:
        workdir: of the run.
        config: of the run; says where its data were, should an older version have kept no more.
    """
    folder, seed = config.data.manual_dir, phantom_seed(config.data)
    learnt = read_learnt(workdir)
    if learnt is None:
        learnt = Learnt(not folder or (Path(folder).expanduser() / PHANTOM).is_file())
    if learnt.phantom and not learnt.phantom_seeds and seed is not None:
        learnt = dataclasses.replace(learnt, phantom_seeds=(seed,))
    return learnt


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
        seeds = tuple(int(seed) for seed in there.get("phantom_seeds", ()))
        return Learnt(bool(there["phantom"]), float(there["drawn_odds"]), seeds)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error!r} where phantom and drawn_odds belong; {fix}") from error


def phantom_seed(data: DataConfig) -> int | None:
    """The seed of the phantoms that a configuration is about; None of other studies, and of records given alone.

    Raises:
        DataError: the folder's `phantom.json` is damaged.
    """
    if not data.manual_dir:
        return None if data.data_dir else data.phantom.seed
    path = Path(data.manual_dir).expanduser() / PHANTOM
    if not path.is_file():
        return None
    fix = "make the phantom again (`cspine phantom`)"
    try:
        return int(read_json(path, fix)["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error!r} where a seed belongs; {fix}") from error
