"""The TFDS builder of `datasets/` makes the records of `cspine build`, without TensorFlow."""

import dataclasses
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cspine_jax.data.source import SliceTable
from tests.data.conftest import TFDS_FOLDER as FOLDER


@pytest.fixture(scope="module")
def prepared(builder_class, folder, tmp_path_factory):
    builder = builder_class(data_dir=tmp_path_factory.mktemp("tfds"), config="native", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder[0]))
    return builder


def test_same_records_as_cspine_build(prepared, table):
    assert "tensorflow" not in sys.modules
    theirs = SliceTable.open(prepared.data_dir)
    for field in dataclasses.fields(table):
        if field.name not in ("path", "pixels"):
            one, other = getattr(table, field.name), getattr(theirs, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    for study in range(len(table.uids)):
        np.testing.assert_array_equal(theirs.read_study(study), table.read_study(study))
        np.testing.assert_array_equal(theirs.read_study_masks(study), table.read_study_masks(study))


def test_same_metadata_as_cspine_build(prepared, records):
    ours, theirs = tfds.builder_from_directory(str(records)).info, prepared.info
    assert ours.features.to_json() == theirs.features.to_json()
    assert (ours.full_name, ours.description, ours.citation) == (theirs.full_name, theirs.description, theirs.citation)
    assert ours.splits["train"].num_examples == theirs.splits["train"].num_examples


def test_layouts(builder_class):
    assert {"native", "size160", "size256", "document_c"} <= set(builder_class.builder_configs)
    assert builder_class.builder_configs["document_c"].records.radius == 2


def test_tags_are_valid():
    tags = {line.split("#")[0].strip() for line in (FOLDER / "TAGS.txt").read_text().splitlines()}
    assert tags <= set(tfds.core.utils.resource_utils.tfds_path("core/valid_tags.txt").read_text().split())
    assert "content.data-type.3d" in tags
