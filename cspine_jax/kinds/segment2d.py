"""Segmentation of slices: 2D UNet, UNet on any backbone, inflated UNet."""

from pathlib import Path
from typing import Any

import jax
import nibabel
import numpy as np

from cspine_jax import progress, xla
from cspine_jax.config import Config
from cspine_jax.data.loader import eval_batches
from cspine_jax.data.source import SliceTable
from cspine_jax.evaluation.slice_dice import evaluate_dice, format_dice
from cspine_jax.kinds.kind import Trained, shard
from cspine_jax.kinds.on_records import OF_STACKS, OnRecords
from cspine_jax.training.segment2d_task import Segment2DTask, study_dice
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines


class Segment2D(OnRecords):
    """Stacks of slices in, a vertebra label for every pixel of the centre slice out."""

    task: Segment2DTask
    of_the_model = OF_STACKS

    masked = True

    def __init__(self, config: Config):
        task = Segment2DTask(config)
        super().__init__(config, task, task.batches)

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Dice of each vertebra in the test studies. Writes `W/evaluation/{dice.csv,metrics.json,report.html}`."""
        data, config = self.data, self.config
        studies, dice = study_dice(model.run(self.in_order(self.studies("test"))))
        network = config.model.network + (f" on {config.model.backbone}" if config.model.network != "unet2d" else "")
        metrics = evaluate_dice(
            [str(uid) for uid in data.table.uids[studies]],
            dice,
            config.eval,
            model.workdir / "evaluation",
            phantom=data.phantom,
            history=read_lines(model.workdir / "metrics.jsonl"),
            facts=self.facts(model, network),
            title=config.name,
        )
        say("\n" + format_dice(metrics) + "\n")
        say(f"report: {model.workdir / 'evaluation' / 'report.html'}")
        return metrics

    def predict(self, model: Trained) -> Path:
        """Segments every study of the records.

        Returns:
            `W/predictions/segmentations/`, one `<StudyInstanceUID>.nii.gz` a study, see `write_record_mask`.
        """
        table = self.data.table
        out = model.workdir / "predictions" / "segmentations"
        out.mkdir(parents=True, exist_ok=True)
        segment = xla.jit(
            lambda params, stats, batch: (
                self.task.segment(params, stats, batch["image"]),
                {name: batch[name] for name in ("index", "valid")},  # so that every host has those of all hosts
            ),
            out_shardings=model.placement.replicated,
        )
        for study in progress.bar(range(len(table.uids)), total=len(table.uids), what="segment", unit="study"):
            rows = table.index[table.records_of([study])]
            labels = np.zeros((len(rows), *table.shapes[study]), np.uint8)
            for batch in eval_batches(table, self.config.data, np.array([study]), task="segment2d", **shard()):
                columns = model.placement.put({name: batch[name] for name in ("image", "index", "valid")})
                found, columns = segment(model.params, model.stats, columns)
                valid = np.asarray(columns["valid"])
                labels[np.searchsorted(rows, np.asarray(columns["index"])[valid])] = np.asarray(found)[valid]
            if jax.process_index() == 0:
                write_record_mask(out / f"{table.uids[study]}.nii.gz", table, study, labels)
        say(f"predictions: {out}")
        return out


def write_record_mask(path: Path, table: SliceTable, study: int, labels: np.ndarray) -> None:
    """A mask on the grid of a study's records as NIfTI (axes x, y, z of the patient; affine to RAS mm).

    The rows and columns of the records are taken to run along the patient's axes. The first pixel is put at
    ImagePositionPatient, which is exact for records of native size; resized ones lie within half of their pixel.
    Masks in the exact geometry of the DICOM files are what `cspine segment` writes.

    Args:
        path: file to write.
        table: the records.
        study: study number.
        labels: uint8 [D, H, W], 0 background, 1..19 C1..T12.
    """
    position = table.position_mm[table.records_of([study])].astype(np.float64)
    z, y, x = table.spacing_mm[study].astype(np.float64)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = (x, 0, 0), (0, y, 0)
    lps[:3, 2] = (position[-1] - position[0]) / (len(position) - 1) if len(position) > 1 else (0, 0, -z)
    lps[:3, 3] = position[0]
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras)  # pyright: ignore[reportPrivateImportUsage]
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)  # pyright: ignore[reportPrivateImportUsage]
