"""TFDS metadata beside the shards: what `tfds.builder_from_directory` needs, written without TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, file_adapters, naming, splits

from cspine_jax.data.features import DATASET_NAME, SPLIT, VERSION, Layout
from cspine_jax.data.tables import PHANTOM

METADATA_FILE = "metadata.json"
HOMEPAGE = "https://www.kaggle.com/competitions/rsna-2022-cervical-spine-fracture-detection"
CITATION = """\
@article{lin2023rsna,
  title   = {The {RSNA} Cervical Spine Fracture {CT} Dataset},
  author  = {Lin, Hui Ming and Colak, Errol and Richards, Tyler and Kitamura, Felipe C. and Prevedello, Luciano M. and
             Talbott, Jason and Ball, Robyn L. and Gumeler, Ekim and Yeom, Kristen W. and others},
  journal = {Radiology: Artificial Intelligence},
  volume  = {5},
  number  = {5},
  pages   = {e230034},
  year    = {2023},
  doi     = {10.1148/ryai.230034},
}
"""


def shard_name(shard: int, shards: int) -> str:
    """`rsna_cspine-train.array_record-00007-of-02019`."""
    return f"{DATASET_NAME}-{SPLIT}.array_record-{shard:05d}-of-{shards:05d}"


def dataset_info_kwargs(layout: Layout) -> dict[str, Any]:
    """What this package's writer and the TFDS builder both say about the data set."""
    return {
        "features": layout.features(),
        "description": layout.about,
        "homepage": HOMEPAGE,
        "citation": CITATION,
        "disable_shuffling": True,
    }


def write_metadata(
    folder: Path,
    layout: Layout,
    *,
    shard_lengths: Sequence[int],
    num_bytes: int,
    metadata: Mapping[str, Any],
) -> None:
    """Writes `dataset_info.json`, `features.json` and `metadata.json`.

    Args:
        folder: where the shards are, named by `shard_name`.
        layout: of the records.
        shard_lengths: records in each shard.
        num_bytes: their size together.
        metadata: free facts about the build, kept in `metadata.json`.
    """
    identity = dataset_info.DatasetIdentity(
        name=DATASET_NAME,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name="",
        config_name=layout.name,
        config_description=layout.description,
    )
    info = dataset_info.DatasetInfo(
        builder=identity, metadata=tfds.core.MetadataDict(metadata), **dataset_info_kwargs(layout)
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    template = naming.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=DATASET_NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = splits.SplitInfo(
        name=SPLIT, shard_lengths=list(shard_lengths), num_bytes=num_bytes, filename_template=template
    )
    info.set_splits(splits.SplitDict([split]))
    info.write_to_directory(folder)


def is_phantom(path: Path) -> bool:
    """Whether records are of synthetic studies, as `cspine build` noted it.

    Those of older versions do not say, and are where the folder they were made from still is and does; those of `tfds
    build` count as real.
    """
    file = path / METADATA_FILE
    if not file.is_file():
        return False
    there = json.loads(file.read_text(encoding="utf-8"))
    folder = there.get("manual_dir", "")
    return bool(there.get("phantom")) or bool(folder and (Path(folder) / PHANTOM).is_file())
