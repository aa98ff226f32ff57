"""The 3D segmentation networks: "spine" (coarse, names and votes) and "refine" (fine, shapes)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import progress, xla
from cspine_jax.anatomy import LABEL_NAMES, NUM_VERTEBRAE
from cspine_jax.config import Config
from cspine_jax.data.volumes import eval_crops, train_crops
from cspine_jax.errors import DataError
from cspine_jax.inference.vertebrae.coarse import see_spine
from cspine_jax.inference.vertebrae.instances import find_instances
from cspine_jax.inference.vertebrae.order import name_instances
from cspine_jax.kinds.kind import Trained
from cspine_jax.kinds.on_records import OnRecords
from cspine_jax.kinds.slice_csv import write_slice_table
from cspine_jax.training.refine_task import RefineTask
from cspine_jax.training.spine_task import SpineTask
from cspine_jax.training.task import Loaders
from cspine_jax.training.volume_task import VolumeTask
from cspine_jax.training.workdir import say, write_text


class _Volume(OnRecords):
    """What both share: crops of the masked studies' records, Dice on those of held-out studies."""

    of_the_model = (
        "task",
        "volume.spacing_mm",
        "volume.width",
        "volume.levels",
        "volume.max_width",
        "volume.light",
    )
    masked = True
    task: VolumeTask
    spine_only: bool
    classes: tuple[str, ...]

    def loaders(self) -> Loaders:
        """Varied crops of the masked training studies; one crop of each masked validation study."""
        if jax.process_count() > 1:
            raise DataError(f"task={self.config.task!r} trains on one host; use its devices, or another task")
        table, config, train = self.data.table, self.config, self.studies("train")
        return Loaders(
            train=lambda: train_crops(
                table, train, config.data, config.volume, config.seed, spine_only=self.spine_only
            ),
            train_examples=len(train),
            validation=lambda: self._crops("validation"),
        )

    def _crops(self, part: str):
        return eval_crops(
            self.data.table, self.studies(part), self.config.data, self.config.volume, spine_only=self.spine_only
        )

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Dice of each class over the crops of the test studies, in `W/evaluation/metrics.json`.

        These are the network's own figures on its own grid; those of whole studies in millimetres are `cspine
        segment`'s and `cspine score_masks`'.
        """
        found = model.run(self._crops("test"))
        common, both = found["common"].sum(0)[1:], found["all"].sum(0)[1:]
        metrics: dict[str, Any] = {
            "data": "phantom" if self.data.phantom else str(self.data.manual_dir),
            "studies": len(found["common"]),
            "dice": {
                name: round(float(2 * c / a), 4) for name, c, a in zip(self.classes, common, both, strict=True) if a
            },
            **{name: round(value, 4) for name, value in self.task.metrics(found).items()},
            **model.facts,
        }
        out = model.workdir / "evaluation" / "metrics.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(metrics, indent=1) + "\n")
        each = "  ".join(f"{name} {value:.3f}" for name, value in metrics["dice"].items())
        say(f"Dice on {metrics['studies']} test crops ({metrics['data']}): {each}")
        return metrics


class Spine(_Volume):
    """Coarse: which vertebra each voxel belongs to."""

    spine_only = False
    classes = tuple(LABEL_NAMES.values())

    def __init__(self, config: Config):
        super().__init__(config, SpineTask(config), "vertebra")

    def predict(self, model: Trained) -> Path:
        """The vertebrae of every slice of every study.

        Returns:
            `W/predictions/slices.csv`, see `slice_csv`. v_ij is the highest probability of bone of a vertebra on
            slice i, times the probability that this vertebra is C_j, summed over the vertebrae of the study.
        """
        table = self.data.table
        network = xla.jit(self.task.packed)
        rows: dict[str, list[np.ndarray]] = {"study": [], "index": [], "v": []}
        studies = np.arange(len(table.uids))
        for study in progress.bar(studies, what="predict", unit="study"):
            stack = _Stack(table.read_study(study), tuple(float(s) for s in table.spacing_mm[study]))
            rows["v"].append(visibility(lambda image: network(model.params, model.stats, image), stack))
            rows["index"].append(np.arange(len(stack.hu)))
            rows["study"].append(np.full(len(stack.hu), study))
        found = {name: np.concatenate(parts) for name, parts in rows.items()}
        return write_slice_table(model.workdir, self.data, found, found["v"])


class Refine(_Volume):
    """Fine: the exact shape of vertebrae whose rough place is given."""

    spine_only = True
    classes = ("colour 0", "colour 1", "colour 2")

    def __init__(self, config: Config):
        super().__init__(config, RefineTask(config), "vertebra")

    def predict(self, model: Trained) -> Path:
        """This network needs a coarse one before it: see `cspine weights export` and `cspine segment`.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{model.workdir}: a refine network alone predicts nothing; join it with a spine run by "
            "`cspine weights export`, then `cspine segment --weights`"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Stack:
    """What `see_spine` reads of a study."""

    hu: np.ndarray
    spacing_mm: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hu.shape


def visibility(network: Any, stack: Any) -> np.ndarray:
    """float32 [D, 7]: how probably each of C1..C7 is visible on each slice, from the coarse network alone."""
    probabilities, offsets, grid = see_spine(network, stack)
    instances = find_instances(probabilities, offsets, grid.spacing_mm)
    naming = name_instances(instances)
    bone = 1 - probabilities[..., 0]
    at = np.clip((np.arange(len(stack.hu)) - grid.origin[0]) / grid.step[0], 0, len(bone) - 1)
    v = np.zeros((len(stack.hu), NUM_VERTEBRAE))
    for k in range(len(instances)):
        seen = np.where(instances.index == k + 1, bone, 0).max(axis=(1, 2))
        on_slice = np.interp(at, np.arange(len(seen)), seen)
        v += on_slice[:, None] * naming.marginals[k, :NUM_VERTEBRAE][None]
    return np.clip(v, 0, 1).astype(np.float32)
