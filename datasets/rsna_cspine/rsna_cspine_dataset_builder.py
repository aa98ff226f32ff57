"""TFDS builder over the functions of `cspine build`: the same features, the same records, the pipeline of TFDS."""

import itertools
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from cspine_jax.data.crops import CropLayout
from cspine_jax.data.crops.build import keyed_crops
from cspine_jax.data.crops.layout import TRUE_MASKS
from cspine_jax.data.crops.masks import masked
from cspine_jax.data.features import SPLIT, Layout, RecordConfig
from cspine_jax.data.features import VERSION as RECORD_VERSION
from cspine_jax.data.metadata import dataset_info_kwargs
from cspine_jax.data.study import keyed_examples
from cspine_jax.data.tables import read_tables

_MANUAL = """\
The challenge's data may not be redistributed. Accept its rules, download it and put `train_images/`, `train.csv`,
`train_bounding_boxes.csv` and `segmentations/` into one folder; pass that folder as --manual_dir. Or make a synthetic
one: `cspine phantom --out DIR --studies 60`.
"""
_CONFIGS = ("native", "size128", "size160", "size256", "size384", "size512", "document_c", "document_c_size256")
_CROPS = tuple(f"crops15r2_size{size}{oriented}" for size in (224, 384, 512) for oriented in ("", "_oriented"))


class RsnaCspineConfig(tfds.core.BuilderConfig):
    """A layout of the records, named as `RecordConfig.name` or `CropLayout.name`."""

    def __init__(self, records: Layout):
        super().__init__(name=records.name, description=records.description)
        self.records = records


class Builder(tfds.core.GeneratorBasedBuilder):
    """Cervical-spine CT in the RSNA 2022 layout, one record a slice, or one a vertebra (by true masks)."""

    VERSION = tfds.core.Version(RECORD_VERSION)
    RELEASE_NOTES = {RECORD_VERSION: "First version."}  # noqa: RUF012  (TFDS asks for this name and type)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _MANUAL
    BUILDER_CONFIGS = [  # noqa: RUF012
        *(RsnaCspineConfig(RecordConfig.from_name(name)) for name in _CONFIGS),
        *(RsnaCspineConfig(CropLayout.from_name(name)) for name in _CROPS),
    ]

    _beam = False

    @property
    def _records(self) -> Any:
        return getattr(self.builder_config, "records")  # noqa: B009  (TFDS types it as the base class)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, **dataset_info_kwargs(self._records))

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        # Only here does TFDS tell whether a Beam runner or its options were given; without either, a plain generator
        # spares the user of one machine the dependency.
        self._beam = bool(download_config.beam_runner or download_config.beam_options)
        super()._download_and_prepare(dl_manager, download_config)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {SPLIT: self._generate_examples(Path(dl_manager.manual_dir))}

    def _generate_examples(self, manual_dir: Path) -> Any:
        """All records in study order, or, with Beam, a transform that makes them study by study."""
        tables, keyed = read_tables(manual_dir), keyed_examples
        if isinstance(self._records, CropLayout):
            tables, keyed = masked(tables, TRUE_MASKS), keyed_crops
        for note in tables.notes:
            logging.warning("skipped %s %s: %s", note.what, note.uid, note.reason)
        studies = [(number, entry, self._records) for number, entry in enumerate(tables.studies)]
        if self._beam:
            beam = tfds.core.lazy_imports.apache_beam
            return beam.Create(studies) | beam.Reshuffle() | beam.FlatMapTuple(keyed)
        return itertools.chain.from_iterable(itertools.starmap(keyed, studies))
