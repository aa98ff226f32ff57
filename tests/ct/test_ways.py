"""One volume written in any combination of ways reads back to the same volume."""

import io
import itertools
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine_jax.ct import read_study
from tests.ct.dicom_factory import SYNTAXES, expected_affine, make_volume, write_series
from tests.ct.ways import every_way

HU = make_volume((34, 36, 40))
PIXELS = (  # signed, intercept, (allocated, stored)
    (False, -1024, (16, 12)),
    (False, -8192, (16, 14)),
    (True, -1024, (16, 16)),
    (True, 0, (16, 13)),
    (True, 0, (16, 16)),
)


@st.composite
def ways(draw):
    return {
        "syntax": draw(st.sampled_from(sorted(SYNTAXES))),
        "axes": draw(st.sampled_from(list(itertools.permutations(range(3))))),
        "flips": draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        "pixels": draw(st.sampled_from(PIXELS)),
        "names": draw(st.sampled_from(("numbers", "shuffled", "letters", "no suffix"))),
        "instances": draw(st.sampled_from(("numbers", "shuffled", "equal", "absent"))),
        "container": draw(st.sampled_from(("folder", "nested", "zip", "zip of folders"))),
        "duplicate": draw(st.booleans()),
        "foreign": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(way=ways())
def test_every_way_of_writing_reads_back_to_the_same_volume(way):
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), way)
        volume = read_study(path)
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    assert any("repeated" in note for note in volume.warnings) == way["duplicate"]
    assert any("left out" in note for note in volume.warnings) == way["foreign"]
    if way["axes"][0] == 0 and way["names"] in ("numbers", "shuffled"):  # every slice knows the file it came from
        numbers = _names(way, 34)
        expected = numbers[::-1] if way["flips"][0] else numbers
        np.testing.assert_array_equal(volume.slice_numbers, expected)


def _names(way: dict, count: int) -> list[int]:
    numbers = list(range(1, count + 1))
    if way["names"] == "shuffled":
        np.random.default_rng(way["seed"]).shuffle(numbers)
    return numbers


def _write(folder: Path, way: dict) -> Path:
    count = HU.shape[way["axes"][0]]
    numbers = _names(way, count)
    suffix = "" if way["names"] == "no suffix" else ".dcm"
    names = [f"IM{chr(65 + k // 26)}{chr(65 + k % 26)}" if way["names"] == "letters" else str(k) for k in numbers]
    instances = list(range(1, count + 1))
    if way["instances"] == "shuffled":
        np.random.default_rng(way["seed"] + 1).shuffle(instances)
    elif way["instances"] == "equal":
        instances = [1] * count

    def edit(dataset, index):
        if way["instances"] == "absent":
            del dataset.InstanceNumber

    signed, intercept, bits = way["pixels"]
    study = folder / "study"
    files = write_series(
        study, HU, syntax=way["syntax"], axes=way["axes"], flips=way["flips"], signed=signed, intercept=intercept,
        bits=bits, numbers=instances, names=[name + suffix for name in names], edit=edit,
    )  # fmt: skip
    if way["duplicate"]:
        (study / f"copy{suffix}").write_bytes(files[way["seed"] % count].read_bytes())
    if way["container"] in ("nested", "zip of folders"):
        for index, file in enumerate(files):
            (study / f"S{index % 3}" / "deep").mkdir(parents=True, exist_ok=True)
            file.rename(study / f"S{index % 3}" / "deep" / file.name)
    if way["foreign"]:
        (study / "index.html").write_text("<html></html>")
        (study / "autorun.inf").write_bytes(b"[autorun]")
    if way["container"].startswith("zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in study.rglob("*"):
                archive.write(file, file.relative_to(folder))
        (folder / "study.zip").write_bytes(buffer.getvalue())
        return folder / "study.zip"
    return study


@pytest.mark.parametrize("way", every_way(), ids=lambda way: way.name)
def test_a_listed_way_is_read_right_or_refused_by_name(way, tmp_path):
    assert way.run(tmp_path) == way.kind


def test_the_list_is_long_and_names_no_way_twice():
    names = [way.name for way in every_way()]
    assert len(names) == len(set(names)) >= 100
