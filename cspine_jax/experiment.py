"""An experiment from a configuration to a report: find or make the data, train or resume, evaluate, predict.

`launch.py` is the command line of this module. Everything a run leaves is under its work folder W: `config.json`,
`metrics.jsonl`, `tensorboard/`, `checkpoints/`, `evaluation/`, `predictions/`.
"""

import contextlib
import csv
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import __version__
from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.config import Config, DataConfig, flatten, to_dict
from cspine_jax.data import build as records
from cspine_jax.data.features import RecordConfig
from cspine_jax.data.loader import eval_batches, split_studies, train_batches, train_records
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.evaluation import SplitPredictions, evaluate, format_table
from cspine_jax.phantom.dataset import write_dataset
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.loop import fit
from cspine_jax.training.sharding import Placement, place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.state import abstract_state
from cspine_jax.training.step import Once, evaluator
from cspine_jax.training.task import Loaders
from cspine_jax.training.writer import Writer, read_lines

HARMLESS = (
    "name",
    "data.root",
    "data.data_dir",
    "data.workers",
    "data.prefetch",
    "data.cache_mb",
    "data.eval_batch_size",
    "train.log_steps",
    "train.checkpoint_steps",
    "train.keep_last",
    "train.keep_best",
    "eval.",
)
"""Fields (and groups) that may change between two calls on one work folder: they do not change what is learnt."""

OF_THE_MODEL = (
    "data.size",
    "data.depth",
    "data.stride",
    "model.",
    "augment.window_",
    "augment.crop",
    "loss.positive_weight",
)
"""Fields that a trained model cannot be used without keeping."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Records, and how they are divided.

    Attributes:
        table: the records.
        parts: study numbers of "train", "validation" and "test".
        phantom: they are synthetic.
        manual_dir: the RSNA-layout folder they were made from ("" where that is not known).
    """

    table: SliceTable
    parts: dict[str, np.ndarray]
    phantom: bool
    manual_dir: str


class Experiment:
    """One configuration on one work folder.

    Args:
        config: the configuration.
        workdir: W; made if absent.
    """

    def __init__(self, config: Config, workdir: str | Path):
        self.config = config
        self.workdir = Path(workdir).expanduser()
        self.seconds: dict[str, float] = {}
        self.placement: Placement = place()
        self.task = SliceTask(config)
        self._evaluator: Once | None = None

    def train(self) -> None:
        """Makes the data where needed, then trains or resumes; see `training.loop.fit` for what is written."""
        check_same(self.workdir, self.config, ignore=HARMLESS)
        data = self.data
        config, table = self.config.data, data.table
        self.workdir.mkdir(parents=True, exist_ok=True)
        with only_process(self.workdir):
            _write_text(self.workdir / "config.json", json.dumps(to_dict(self.config), indent=1) + "\n")
            shard = {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
            loaders = Loaders(
                train=lambda: train_batches(table, config, self.config.seed, studies=data.parts["train"], **shard),
                train_examples=len(train_records(table, config, data.parts["train"])),
                validation=lambda: eval_batches(table, config, data.parts["validation"], **shard),
            )
            counts = ", ".join(f"{len(studies)} {part}" for part, studies in data.parts.items())
            say(
                f"train: {counts} studies; {loaders.train_examples} training slices; {self.placement.mesh.size} devices"
            )
            with self._timed("training"):
                done = fit(self.task, self.config, loaders, self.workdir, placement=self.placement)
        self._evaluator = done.evaluate
        if done.resumed_from == done.step:
            say(f"train: finished before ({done.finished}); to train anew, give another --workdir")
        else:
            start = f"resumed at step {done.resumed_from}; " if done.resumed_from else ""
            say(f"train: {start}{done.finished}")

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the best checkpoint: validation chooses thresholds, test gives the figures.

        Writes `W/evaluation/{predictions.csv,slices.csv,metrics.json,report.html}`.

        Returns:
            The content of `metrics.json`.
        """
        check_same(self.workdir, self.config, only=OF_THE_MODEL, must_exist=True)
        data, config = self.data, self.config
        with self._timed("evaluation"):
            params, stats, step = self._best()
            predictions = {
                part: split_predictions(data.table, data.parts[part], self._predict(params, stats, data.parts[part]))
                for part in ("validation", "test")
            }
            metrics = evaluate(
                predictions,
                config.eval,
                self.workdir / "evaluation",
                phantom=data.phantom,
                history=read_lines(self.workdir / "metrics.jsonl"),
                read_slice=lambda uid, index: read_slice(data.table, uid, index),
                model_type=config.model.type,
                fracture_target=config.data.fracture_target,
                positive_weight=config.loss.positive_weight,
                window=(config.augment.window_level, config.augment.window_width),
                facts={
                    "experiment": config.name,
                    "work folder": self.workdir,
                    "records": data.table.path,
                    "studies": ", ".join(f"{len(studies)} {part}" for part, studies in data.parts.items()),
                    "model": f"Type {config.model.type}, {config.model.backbone}, {config.data.depth} slices of "
                    f"{config.data.size or 'native'} px",
                    "parameters": f"{sum(x.size for x in jax.tree.leaves(params)):,}",
                    "checkpoint": f"step {step}",
                    "seed": config.seed,
                    "software": f"cspine_jax {__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}",
                },
                title=config.name,
            )
        print("\n" + format_table(metrics) + "\n", flush=True)
        say(f"report: {self.workdir / 'evaluation' / 'report.html'}")
        say(f"checkpoint: {self.workdir / 'checkpoints' / str(step)}")
        return metrics

    def predict(self) -> Path:
        """Predicts every slice of every study in the records with the best checkpoint.

        Returns:
            `W/predictions/slices.csv`: StudyInstanceUID, slice_index, part ("train" studies were learnt from: their
            predictions flatter), C1..C7 (vertebra probabilities; Type 3 only, ready as `data.vertebra_probs`), and
            f_C1..f_C7 or f (fracture, as the network says: score-optimal where `loss.positive_weight` is 2).
        """
        check_same(self.workdir, self.config, only=OF_THE_MODEL, must_exist=True)
        data, table = self.data, self.data.table
        params, stats, _ = self._best()
        with self._timed("prediction"):
            found = self._predict(params, stats, np.arange(len(table.uids)))
        part_of = np.full(len(table.uids), "none", dtype=object)
        for part, studies in data.parts.items():
            part_of[studies] = part
        out = self.workdir / "predictions" / "slices.csv"
        out.parent.mkdir(parents=True, exist_ok=True)
        own = self.config.model.type == 3
        f_names = ["f"] if found["fracture_prob"].shape[1] == 1 else [f"f_{name}" for name in VERTEBRAE]
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["StudyInstanceUID", "slice_index", "part", *(VERTEBRAE if own else ()), *f_names])
            for row, study in enumerate(found["study"]):
                values = np.concatenate([found["vertebra_prob"][row] if own else [], found["fracture_prob"][row]])
                place_of = [table.uids[study], int(found["index"][row]), part_of[study]]
                writer.writerow([*place_of, *(f"{x:.6g}" for x in values)])
        say(f"predictions: {out}")
        return out

    @property
    def data(self) -> Data:
        """The data, found or made at the first use."""
        if not hasattr(self, "_data"):
            with self._timed("data"):
                self._data = find_data(self.config.data)
        return self._data

    def log_costs(self, wall: float, compiling: float) -> None:
        """Prints and logs what a call cost.

        Args:
            wall: seconds since the program started.
            compiling: seconds of them spent on tracing and compiling.
        """
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        say(f"wall time: {wall:.0f} s ({parts}); compilation {compiling:.0f} s, {compiling / wall:.0%} of it")
        step = max((line["step"] for line in read_lines(self.workdir / "metrics.jsonl")), default=0)
        with Writer(self.workdir, step) as writer:
            seconds = {f"{name}_seconds": round(x, 2) for name, x in self.seconds.items()}
            writer.write(step, "run", {"seconds": round(wall, 2), "compile_seconds": round(compiling, 2), **seconds})

    def _best(self) -> tuple[Any, Any, int]:
        params, stats = abstract_state(lambda: self.task.init(jax.random.key(0)), self.placement)
        with Checkpoints(self.workdir / "checkpoints") as checkpoints:
            return checkpoints.load_model(params, stats)

    def _predict(self, params: Any, stats: Any, studies: np.ndarray) -> dict[str, np.ndarray]:
        if self._evaluator is None:
            self._evaluator = evaluator(self.task, self.placement)
        shard = {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
        batches = eval_batches(self.data.table, self.config.data, studies, **shard)
        result = run_pass(self._evaluator, params, stats, batches, self.placement)
        assert result is not None
        return result[1]

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - before


def find_data(config: DataConfig) -> Data:
    """Finds, finishes or makes the RSNA-layout folder and its records.

    `manual_dir` empty: records that are already in `data_dir` are taken as they are; else the phantom under `root`.

    Raises:
        DataError: `manual_dir` is not there, or what is there cannot be used.
    """
    layout = RecordConfig(config.size)
    if config.data_dir and not config.manual_dir:
        there = records.records_path(config.data_dir, layout)
        if there.is_dir():
            say(f"data: records {there}")
            return _open(there, config)
    if config.manual_dir:
        source = Path(config.manual_dir).expanduser()
        if not source.is_dir():
            raise DataError(
                f"data.manual_dir={config.manual_dir!r}: no such folder; give the one that holds train.csv and "
                "train_images/, or leave it empty for the phantom"
            )
    else:
        phantom = config.phantom
        name = f"phantom-{phantom.difficulty}-{phantom.studies}x{phantom.size}px"
        name += f"-scale{phantom.scale:g}-fov{phantom.fov:g}"
        name += "" if phantom.variety == "rsna" else f"-{phantom.variety}"
        source = Path(config.root).expanduser() / f"{name}-seed{phantom.seed}"
        say(f"data: phantom of {phantom.studies} studies in {source}")
        write_dataset(source, **dataclasses.asdict(phantom))
    data_dir = config.data_dir or str(Path(config.root).expanduser() / "records" / source.resolve().name)
    built = records.build(source, data_dir, size=config.size, num_folds=config.num_folds)
    say(f"data: {built.studies} studies, {built.slices} slices in {built.path}")
    if built.skipped:
        say(f"data: {len(built.skipped)} things left out, see {built.path / records.SKIPPED_FILE}")
    return _open(built.path, config)


def _open(path: Path, config: DataConfig) -> Data:
    table = SliceTable.open(path, cache_mb=config.cache_mb)
    manual_dir = ""
    if (path / records.METADATA_FILE).is_file():
        manual_dir = json.loads((path / records.METADATA_FILE).read_text(encoding="utf-8")).get("manual_dir", "")
    phantom = bool(manual_dir) and (Path(manual_dir) / "phantom.json").is_file()
    return Data(table, split_studies(table, config), phantom, manual_dir)


def split_predictions(table: SliceTable, studies: np.ndarray, found: dict[str, np.ndarray]) -> SplitPredictions:
    """The evaluation's view of one part.

    Args:
        table: the records.
        studies: study numbers of the part.
        found: table of `run_pass` over them.
    """
    position = np.full(len(table.uids), -1)
    position[studies] = np.arange(len(studies))
    return SplitPredictions(
        uids=[str(uid) for uid in table.uids[studies]],
        study=position[found["study"]],
        index=found["index"],
        fracture=found["fracture_prob"],
        vertebra=found["vertebra_prob"],
        labels=np.where(table.has_labels[studies, None], table.labels[studies], np.nan),
        **{name: found[name] for name in ("presence", "presence_known", "slice_fracture", "slice_known")},
    )


def read_slice(table: SliceTable, uid: str, index: int) -> np.ndarray:
    """int16 [H, W] HU of one slice of a study."""
    study = int(np.flatnonzero(table.uids == uid)[0])
    rows = table.records_of([study])
    record = rows[np.flatnonzero(table.index[rows] == index)[0]]
    return table.read_stacks(np.array([record]), depth=1)[0, 0]


def check_same(
    workdir: Path,
    config: Config,
    *,
    ignore: tuple[str, ...] = (),
    only: tuple[str, ...] = ("",),
    must_exist: bool = False,
) -> None:
    """Refuses a work folder whose `config.json` is of another experiment.

    Args:
        workdir: W.
        config: what is asked for now.
        ignore: field names and group prefixes that may differ.
        only: prefixes of the fields that are compared.
        must_exist: a folder without `config.json` is an error too.

    Raises:
        ConfigError: fields differ (all are named), or the file cannot be read.
        DataError: `must_exist`, and there is none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        if must_exist:
            raise DataError(f"{workdir}: no config.json, so nothing was trained here; run --mode=train first")
        return
    try:
        before = flatten(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); give another --workdir") from None
    now = flatten(to_dict(config))
    fields = [f for f in sorted({*before, *now}) if f.startswith(only) and not (ignore and f.startswith(ignore))]
    differing = [
        f"{field}={now.get(field)!r} (there {before.get(field)!r})"
        for field in fields
        if before.get(field) != now.get(field)
    ]
    if differing:
        raise ConfigError(
            f"{path}: this run was started with other settings: {', '.join(differing)}; give those back or another "
            "--workdir"
        )


@contextlib.contextmanager
def only_process(workdir: Path) -> Iterator[None]:
    """Refuses a second training in the same folder at the same time; the lock dies with its process."""
    import fcntl

    if jax.process_index() > 0:  # the first host of a job holds it for all
        yield
        return
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{workdir}: another process is training here; wait for it or give another --workdir"
            ) from None
        yield


def say(line: str) -> None:
    """One line for the user, from the first host only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def _write_text(path: Path, text: str) -> None:
    if jax.process_index() == 0:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
