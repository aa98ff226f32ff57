"""Vertebra masks against the truth: one row a study, means over all, document B's figures beside them."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE
from cspine_jax.metrics.segmentation import SegmentationScores, presence_scores, segmentation_scores, summary

DOCUMENT_B = {"presence_accuracy": 0.945, "presence_auc": 0.959}
"""Document B's vertebra detection on RSNA slices: another task, on other data; shown for scale only."""

TABLE, REPORT = "scores.csv", "scores.json"


@dataclasses.dataclass
class MaskScores:
    """Collects the scores of study after study.

    Attributes:
        uids: of the studies so far.
        studies: their scores.
        shown: 0 / 1 [D, 7] a study, whether a slice shows a level.
        visibility: float32 [D, 7] a study, v_ij.
    """

    uids: list[str] = dataclasses.field(default_factory=list)
    studies: list[SegmentationScores] = dataclasses.field(default_factory=list)
    shown: list[np.ndarray] = dataclasses.field(default_factory=list)
    visibility: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(
        self,
        uid: str,
        truth: np.ndarray,
        predicted: np.ndarray,
        visibility: np.ndarray,
        spacing_mm: tuple[float, float, float],
    ) -> SegmentationScores:
        """Scores one study.

        Args:
            uid: StudyInstanceUID.
            truth: uint8 [D, H, W].
            predicted: the same.
            visibility: float32 [D, 7], v_ij.
            spacing_mm: (z, y, x).
        """
        scores = segmentation_scores(truth, predicted, spacing_mm)
        self.uids.append(uid)
        self.studies.append(scores)
        levels = np.arange(1, NUM_VERTEBRAE + 1)
        self.shown.append(np.stack([np.isin(levels, plane) for plane in truth]).astype(float))
        self.visibility.append(visibility)
        return scores

    def report(self) -> dict[str, Any]:
        """JSON-ready means; None where nothing was defined."""
        presence = presence_scores(np.concatenate(self.shown), np.concatenate(self.visibility))
        figures = {
            "studies": len(self.studies),
            **summary(self.studies),
            "presence_accuracy": presence["accuracy"],
            "presence_auc": presence["auc"],
            "dice_by_level": dict(zip(VERTEBRAE, self._column_means("dice"), strict=True)),
            "document_b": DOCUMENT_B,
        }
        return {name: _plain(value) for name, value in figures.items()}

    def write(self, folder: Path) -> None:
        """Writes `scores.csv` (a row a study: Dice a level, levels missed and falsely named) and `scores.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["StudyInstanceUID", *(f"dice_{n}" for n in VERTEBRAE), "identified", "false_levels"])
            for uid, scores in zip(self.uids, self.studies, strict=True):
                dice = ["" if np.isnan(x) else f"{x:.4f}" for x in scores.dice]
                known = scores.identified[:NUM_VERTEBRAE][~np.isnan(scores.identified[:NUM_VERTEBRAE])]
                writer.writerow([uid, *dice, f"{int(known.sum())}/{len(known)}", " ".join(scores.false_levels)])
        (folder / REPORT).write_text(json.dumps(self.report(), indent=1) + "\n", encoding="utf-8")

    def line(self) -> str:
        """What to print at the end."""
        r = self.report()
        return (
            f"{r['studies']} studies with truth: Dice C1..C7 {_show(r['dice'])}, surface Dice (1 mm) "
            f"{_show(r['surface_dice'])}, HD95 {_show(r['hd95_mm'])} mm, identified {_show(r['identification_rate'])}, "
            f"no false level in {_show(r['no_false_level'])}; presence a slice: accuracy "
            f"{_show(r['presence_accuracy'])}, AUC {_show(r['presence_auc'])}"
        )

    def _column_means(self, name: str) -> list[float]:
        columns = np.stack([getattr(scores, name) for scores in self.studies]).T
        return [float(c[~np.isnan(c)].mean()) if (~np.isnan(c)).any() else float("nan") for c in columns]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), 5)
    return value


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
