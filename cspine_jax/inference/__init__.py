"""A study and a trained checkpoint -> findings."""
