"""cspine_jax: cervical-spine fracture detection in CT, written in JAX. Research only, not a medical device."""

__version__ = "0.1.0"
