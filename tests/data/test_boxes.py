"""A box drawn on the stored image encloses the same bright block after the reader has turned or straightened it."""

import dataclasses
import itertools

import numpy as np
import pydicom
import pytest

from cspine_jax.ct import read_study
from cspine_jax.data.boxes import place_boxes
from cspine_jax.data.features import RecordConfig
from cspine_jax.data.study import examples, load_study
from cspine_jax.data.tables import StudyEntry
from tests.ct.dicom_factory import write_series

BLOCK = (slice(2, 3), slice(5, 9), slice(20, 30))


def volume():
    hu = np.full((6, 34, 40), -500, np.int16)
    hu[BLOCK] = 1200
    return hu


def drawn_on_stored_images(folder):
    """The block's (slice_number, x, y, width, height), looked up in the files."""
    for file in folder.iterdir():
        bright = pydicom.dcmread(file).pixel_array > 1500
        if bright.any():
            y, x = np.nonzero(bright)
            yield int(file.stem), x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1


@pytest.mark.parametrize(
    ("axes", "flips"), list(itertools.product([(0, 1, 2), (0, 2, 1)], itertools.product([False, True], repeat=3)))
)
def test_turned_images(tmp_path, axes, flips):
    write_series(tmp_path, volume(), axes=axes, flips=flips)
    read = read_study(tmp_path)
    np.testing.assert_array_equal(read.hu, volume())
    boxes, lost = place_boxes(list(drawn_on_stored_images(tmp_path)), read)
    assert not lost
    assert [len(row) for row in boxes] == [0, 0, 1, 0, 0, 0]
    assert boxes[2].tolist() == [[20, 5, 10, 4]]


@pytest.mark.parametrize("flip", [False, True])
def test_tilted_gantry(tmp_path, flip):
    positions = np.array([[-80.0, -100.0 + 0.7 * k, 60.0 - 0.625 * k] for k in range(6)])
    write_series(tmp_path, volume(), positions=positions[::-1] if flip else positions, flips=(flip, False, False))
    read = read_study(tmp_path)
    assert read.resampling is not None
    boxes, _ = place_boxes(list(drawn_on_stored_images(tmp_path)), read)
    (row,) = np.flatnonzero([len(row) for row in boxes])
    y, x = np.nonzero(read.hu[row] > 350)
    left, top, width, height = boxes[row][0]
    np.testing.assert_allclose([left, width], [x.min(), np.ptp(x) + 1])
    assert abs(top - y.min()) <= 0.5
    assert abs(top + height - (y.max() + 1)) <= 0.5
    assert abs(top - 5) > 0.9  # the shift is there to be followed


def test_a_slice_the_study_has_not(tmp_path):
    write_series(tmp_path, volume())
    boxes, lost = place_boxes([(99, 1, 2, 3, 4)], read_study(tmp_path))
    assert lost == (99,)
    assert not any(len(row) for row in boxes)
    entry = StudyEntry("1.2.3", tmp_path, (1, 1, 0, 0, 0, 0, 0, 0), ((99, 1.0, 2.0, 3.0, 4.0),), None, 0)
    study = load_study(entry)  # what shows its fractures is not known: no slice may be taught as whole
    assert not study.has_boxes and any(note.what == "boxes" for note in study.notes)
    assert not next(examples(study, RecordConfig()))["has_boxes"]
    found = load_study(dataclasses.replace(entry, boxes=((int(study.slice_numbers[0]), 1.0, 2.0, 3.0, 4.0),)))
    assert found.has_boxes and next(examples(found, RecordConfig()))["has_boxes"]
