"""Weights that come with the package and their cards; `training.weights_file.read("package:gold")` reads one."""
