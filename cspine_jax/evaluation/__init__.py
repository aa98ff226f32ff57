"""Slice predictions -> tables, files and a report. Everything here is numpy; models and jax stay outside."""

from cspine_jax.evaluation.evaluate import evaluate
from cspine_jax.evaluation.predictions import SplitPredictions
from cspine_jax.evaluation.presence import evaluate_presence
from cspine_jax.evaluation.tables import format_table

__all__ = ["SplitPredictions", "evaluate", "evaluate_presence", "format_table"]
