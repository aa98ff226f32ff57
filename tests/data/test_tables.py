"""Label tables: what is wrong is named with its file and line."""

import pytest

from cspine_jax.data.tables import read_tables
from cspine_jax.errors import DataError
from tests.data.rsna_folder import make, write_dicom, write_tables

HEADER = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"
BOXES = "StudyInstanceUID,x,y,width,height,slice_number\n"


@pytest.fixture
def root(tmp_path):
    made = make("1.2.3", depth=3)
    write_dicom(tmp_path / "train_images" / made.uid, made)
    write_tables(tmp_path, {made.uid: (2,)}, [])
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("StudyInstanceUID,C1\n1,0\n", r"train\.csv: column patient_overall is missing"),
        (f"{HEADER}1.2.3,1,0,1,0,0,0,0,\n", r"train\.csv:2: study 1\.2\.3 has labels .* must be 0 or 1"),
        (f"{HEADER}1.2.3,0,0,1,0,0,0,0,0\n", r"train\.csv:2: .*patient_overall=0 but"),
        (f"{HEADER}1.2.3,0,0,0,0,0,0,0,0\n1.2.3,0,0,0,0,0,0,0,0\n", r"train\.csv:3: .* twice"),
    ],
)
def test_wrong_labels(root, text, message):
    (root / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_tables(root)


def test_a_table_without_rows_and_one_that_is_not_utf8(root):
    (root / "train.csv").write_text(HEADER)
    assert all(entry.labels is None for entry in read_tables(root).studies)
    (root / "train.csv").write_bytes(f"note,{HEADER}".encode() + "Schädel,1.2.3,0,0,0,0,0,0,0,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.csv: .*utf-8.*; save it as CSV in UTF-8"):
        read_tables(root)


@pytest.mark.parametrize(
    "row", ["1.2.3,1,2,3,x,5", "1.2.3,1,2,0,4,5", "1.2.3,1,2,3,4,5.5", "1.2.3,nan,2,3,4,5", "1.2.3"]
)
def test_wrong_boxes(root, row):
    (root / "train_bounding_boxes.csv").write_text(f"{BOXES}{row}\n")
    with pytest.raises(DataError, match=r"train_bounding_boxes\.csv:2: "):
        read_tables(root)


def test_missing_tables(root):
    (root / "train_bounding_boxes.csv").unlink()
    assert read_tables(root).studies[0].boxes == ()
    (root / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train\.csv: no such file"):
        read_tables(root)


def test_fingerprint_follows_tables_and_masks(root):
    first = read_tables(root).fingerprint
    assert read_tables(root).fingerprint == first
    (root / "segmentations").mkdir()
    (root / "segmentations" / "1.2.3.nii.gz").touch()
    with_mask = read_tables(root).fingerprint
    write_tables(root, {"1.2.3": (3,)}, [])
    assert len({first, with_mask, read_tables(root).fingerprint}) == 3


def test_a_phantom_of_other_parameters_is_another_folder(root):
    prints = set()
    for text in ('{"size": 96, "version": "1"}', '{"size": 128, "version": "1"}', '{"size": 128, "version": "2"}'):
        (root / "phantom.json").write_text(text)
        prints.add(read_tables(root).fingerprint)
    assert len(prints) == 2
