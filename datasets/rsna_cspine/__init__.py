"""The TFDS data set `rsna_cspine`; `tfds build datasets/rsna_cspine` reads it from here."""
