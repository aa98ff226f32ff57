"""Weights that come with the package (`vertebrae.npz`) and their card. Read them with `inference.weights.load`."""
