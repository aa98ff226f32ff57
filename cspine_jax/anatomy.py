"""The vocabulary: vertebrae, targets, mask label values and metric weights. The one source of truth for all of them."""

VERTEBRAE: tuple[str, ...] = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
"""The seven cervical vertebrae, cranial to caudal: the order of every `[..., 7]` axis."""

THORACIC: tuple[str, ...] = tuple(f"T{i}" for i in range(1, 13))

PATIENT: str = "patient_overall"

TARGETS: tuple[str, ...] = (PATIENT, *VERTEBRAE)
"""Columns of `train.csv` after the study: the order of every `[..., 8]` axis."""

LABEL_VALUES: dict[str, int] = {name: value for value, name in enumerate((*VERTEBRAE, *THORACIC), start=1)}
"""Segmentation label values of RSNA 2022: 1..7 = C1..C7, 8..19 = T1..T12, 0 = background."""

LABEL_NAMES: dict[int, str] = {value: name for name, value in LABEL_VALUES.items()}

NUM_VERTEBRAE: int = len(VERTEBRAE)

NUM_LABELS: int = len(LABEL_VALUES) + 1
"""Classes of a segmentation: background, C1..C7, T1..T12."""

# RSNA 2022 evaluation: weight of a negative and a positive, for a vertebra and for the patient.
VERTEBRA_WEIGHTS: tuple[float, float] = (1.0, 2.0)
PATIENT_WEIGHTS: tuple[float, float] = (7.0, 14.0)
