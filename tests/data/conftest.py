"""One small folder and its records, shared by the tests of this package."""

import pytest

from cspine_jax.data.build import build
from cspine_jax.data.source import SliceTable
from tests.data.rsna_folder import write_folder


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
