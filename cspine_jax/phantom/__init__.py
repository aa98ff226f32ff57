"""Seeded synthetic cervical-spine CT studies in the RSNA 2022 folder layout; pydicom only in `writer`."""

from cspine_jax.phantom.dataset import make_study, write_dataset
from cspine_jax.phantom.plan import StudyPlan
from cspine_jax.phantom.sample import sample_study

__all__ = ["StudyPlan", "make_study", "sample_study", "write_dataset"]
