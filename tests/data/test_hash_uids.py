"""Records with hashed UIDs: the same slices, labels, boxes and masks, and no true UID or patient anywhere."""

import re

import numpy as np
import pydicom
import pytest

from cspine_jax.cli import main
from cspine_jax.ct import Identity
from cspine_jax.data.build import build
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError
from tests.data.rsna_folder import make, write_dicom, write_mask, write_tables

ROOT = "1.2.826.0.1.3680043.8.498.77."
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711", "PatientBirthDate": "19470813",
           "AccessionNumber": "ACC99341X", "InstitutionName": "Elsewhere"}  # fmt: skip
WORDS = re.compile(r"Doe|Jane|4711|19470813|ACC99341X|Elsewhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four good studies (a mask does not fit one), one with a damaged file, one that is only in the table."""
    root = tmp_path_factory.mktemp("manual")
    uids = [ROOT + str(number) for number in range(6)]
    boxes = []
    for number, uid in enumerate(uids[:5]):
        study = make(uid, 6 + number, seed=number)
        write_dicom(root / "train_images" / uid, study)
        for file in (root / "train_images" / uid).iterdir():
            dataset = pydicom.dcmread(file)
            for name, value in PATIENT.items():
                setattr(dataset, name, value)
            dataset.save_as(file)
        write_mask(root / "segmentations" / f"{uid}.nii.gz", study.mask[: 5 if number == 1 else None])
        if number == 3:
            boxes += [(uid, 5, 4, 6.5, 7, 2), (uid, 5, 4, 6.5, 7, 99)]
    (root / "train_images" / uids[4] / "2.dcm").write_bytes(b"Doe^Jane")
    write_tables(root, {uid: ((number,) if number else ()) for number, uid in enumerate(uids)}, boxes)
    return root


def everything_in(path):
    """Names and contents of all files; compressed ones are taken apart."""
    for file in sorted(path.rglob("*")):
        yield file.name
        if file.suffix == ".npz":
            columns = np.load(file)
            yield from (str(columns[name].tolist()) for name in columns.files if columns[name].dtype.kind == "U")
        elif file.is_file():
            yield file.read_bytes().decode("latin-1")


def test_the_records_are_the_same_but_for_their_uids(folder, tmp_path, capfd):
    plain = build(folder, tmp_path / "plain", num_folds=2, workers=1)
    capfd.readouterr()
    secret = build(folder, tmp_path / "secret", num_folds=2, workers=1, hash_uids="s")
    said = "".join(capfd.readouterr())
    identity = Identity("s")
    ours, theirs = SliceTable.open(plain.path), SliceTable.open(secret.path)
    order = [list(theirs.uids).index(identity.uid(uid)) for uid in ours.uids]
    np.testing.assert_array_equal(theirs.labels[order], ours.labels)
    np.testing.assert_array_equal(theirs.folds[order], ours.folds)
    np.testing.assert_array_equal(theirs.num_slices[order], ours.num_slices)
    np.testing.assert_array_equal(theirs.has_mask[order], ours.has_mask)
    for number, place in enumerate(order):
        mine, yours = ours.study == number, theirs.study == place
        np.testing.assert_array_equal(theirs.presence[yours], ours.presence[mine])
    assert len(secret.skipped) == len(plain.skipped) == 4  # a mask, a box, a study, and one without folder
    assert sorted(note.uid for note in secret.skipped) == sorted(identity.uid(note.uid) for note in plain.skipped)
    for text in (said, *everything_in(tmp_path / "secret"), *map(str, secret.skipped)):
        assert ROOT not in text and not WORDS.search(text)
    assert any(ROOT in text for text in everything_in(tmp_path / "plain"))
    assert not any(WORDS.search(text) for text in everything_in(tmp_path / "plain"))


def test_another_salt_is_another_build(folder, tmp_path):
    flags = ["build", f"--manual_dir={folder}", f"--data_dir={tmp_path}", "--folds=2", "--workers=1"]
    assert main([*flags, "--hash_uids=s"]) == 0
    assert main([*flags, "--hash_uids=s"]) == 0
    for other in ("t", None):
        with pytest.raises(DataError, match="hash_uids"):
            build(folder, tmp_path, num_folds=2, workers=1, hash_uids=other)
    assert main([*flags, "--hash_uids"]) == 2
