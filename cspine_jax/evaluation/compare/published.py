"""Figures that others have published, each with the data it was measured on. None of them is on this data."""

from typing import NamedTuple

from cspine_jax.evaluation.tables import DOCUMENT_B

CANNOT_BE_COMPARED = (
    "Figures measured on different data cannot be compared: not ours with these, and not one block of these with "
    "another. Each is the measure its authors chose on the studies they held out, and a phantom is no patient."
)


class Published(NamedTuple):
    """One figure: who, which model, what was measured, the value as printed, and on which data."""

    source: str
    model: str
    measure: str
    value: str
    data: str


_A = "RSNA 2022, as document A reports"
_B = "RSNA 2022, as document B reports"
_C = "document C's validation, 14 of 86 RSNA 2022 studies"
_PRIVATE = "private test set of RSNA 2022"
_REAL = "the 2,019 labelled studies of RSNA 2022, labels alone"

PUBLISHED: tuple[Published, ...] = (
    Published("document C", "gold, 2.5D CNN + LSTM", "loss", ".2047", "RSNA 2022, as document C quotes it"),
    Published("document C", "silver, 2.5D CNN + Transformer", "loss", ".4140", "RSNA 2022, as document C quotes it"),
    Published("document C", "bronze, EfficientNetV2-S", "loss", ".4982", "RSNA 2022, as document C quotes it"),
    Published("document C", "3D ViT, batch 2, lr 3e-4, smoothing .1", "BCE", ".4158", _C),
    Published("document C", "3D ViT, batch 1, lr 3e-4, no smoothing", "BCE", ".4879", _C),
    Published("document C", "3D ViT, batch 1, lr 5e-4, smoothing .1", "BCE", ".8186", _C),
    Published("document B", "slice model", "vertebra AUC", f"{DOCUMENT_B['vertebra']['auc']:.3f}", _B),
    Published("document B", "slice model", "vertebra recall", f"{DOCUMENT_B['vertebra']['sensitivity']:.3f}", _B),
    Published("document B", "slice model", "patient AUC", f"{DOCUMENT_B['patient']['auc']:.3f}", _B),
    Published("document B", "slice model", "patient recall", f"{DOCUMENT_B['patient']['sensitivity']:.3f}", _B),
    Published("document A", "basic CNN", "loss / F1", ".0049 / .8381", _A),
    Published("document A", "InceptionV3", "loss / F1", ".0512 / .4783", _A),
    Published("document A", "ResNet50", "loss / F1", ".7423 / .3874", _A),
    Published("document A", "EfficientNetB5", "loss / F1", "1.0992 / .0660", _A),
    Published("challenge winners", "prize-winning models", "patient AUC", ".95-.97", _PRIVATE),
    Published("challenge winners", "prize-winning models", "sensitivity / specificity", "88% / 94%", _PRIVATE),
    Published(
        "challenge winners", "prize-winning models", "patient AUC", ".79-.92 (mean .89)", "outside trauma centre"
    ),
    Published("challenge winners", "prize-winning models", "sensitivity", "67%", "outside trauma centre"),
    Published("commercial CAD", "several", "sensitivity", "54.9-91%", "various, as published"),
    Published("commercial CAD", "several", "specificity", "92-99%", "various, as published"),
    Published("constant", "0.5 for everything", "RSNA metric A / B / C", ".6931 / .6931 / .6931", _REAL),
    Published("constant", "prevalence q of each target", "RSNA metric A / B / C", ".5638 / .6127 / .5932", _REAL),
    Published("constant", "2q / (1 + q)", "RSNA metric A / B / C", ".5757 / .5668 / .5496", _REAL),
)
