"""Models under one metric: out-of-fold tables, ensembles, calibration, uncertainty, paired tests. Pure numpy."""

from cspine_jax.evaluation.compare.columns import check_marks, terminal, write_markdown
from cspine_jax.evaluation.compare.compare import Comparison, Settings, compare
from cspine_jax.evaluation.compare.ensembles import PREFIX
from cspine_jax.evaluation.compare.models import (
    OF_TRUTH,
    Model,
    align,
    join_folds,
    merge_labels,
    outside_model,
    read_tta,
)
from cspine_jax.evaluation.compare.write import write_comparison

__all__ = [
    "OF_TRUTH",
    "PREFIX",
    "Comparison",
    "Model",
    "Settings",
    "align",
    "check_marks",
    "compare",
    "join_folds",
    "merge_labels",
    "outside_model",
    "read_tta",
    "terminal",
    "write_comparison",
    "write_markdown",
]
