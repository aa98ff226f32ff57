"""Records and batches: an RSNA-layout folder becomes one record a slice, and every model reads views of those records.

The way through: `tables` reads the folder's label tables, `folds` deals the studies into folds, `study` turns one study
into rows, `features` says what a record holds, `build` writes the shards; `source` reads them back, `targets` derives
what a slice is trained on, `loader` makes batches. `crops` are records of another kind, one a vertebra, by the same
`build`. Nothing here imports jax.
"""
