"""One small folder and its records, shared by the tests of this package."""

import importlib.util
import sys
from pathlib import Path

import pytest

from cspine_jax.data.build import build
from cspine_jax.data.source import SliceTable
from tests.data.rsna_folder import write_folder

TFDS_FOLDER = Path(__file__).parents[2] / "datasets" / "rsna_cspine"


@pytest.fixture(scope="session")
def builder_class():
    """The TFDS builder, loaded once: TFDS refuses a second one of that name."""
    spec = importlib.util.spec_from_file_location(
        "rsna_cspine_dataset_builder", TFDS_FOLDER / "rsna_cspine_dataset_builder.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Builder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """(path of an RSNA-layout folder of 10 studies, {uid: Made})."""
    path = tmp_path_factory.mktemp("rsna")
    return path, write_folder(path)


@pytest.fixture(scope="session")
def records(folder, tmp_path_factory):
    """Path of its native records."""
    return build(folder[0], tmp_path_factory.mktemp("records"), workers=1).path


@pytest.fixture
def table(records):
    return SliceTable.open(records)
