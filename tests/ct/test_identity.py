"""Hashed UIDs: valid, the same in every run with one salt, and nothing of the true ones left."""

import json
import re

import numpy as np
import pytest
from pydicom.uid import UID

from cspine_jax.cli import main
from cspine_jax.ct import Identity, read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SERIES_UID, STUDY_UID, make_volume, write_series

UIDS = [STUDY_UID, "1.2.3", "2.25.302617244389023190273840561924370912853", "an-anonymisers-choice", "0.1"]


@pytest.mark.parametrize("uid", UIDS)
def test_a_hash_is_a_valid_uid_that_depends_on_the_salt_alone(uid):
    hashed = Identity("pepper").uid(uid)
    assert UID(hashed).is_valid and hashed.startswith("2.25.") and len(hashed) <= 64
    assert hashed == Identity("pepper").uid(uid) != Identity("salt").uid(uid)
    assert Identity("pepper").uid(hashed) == hashed  # nothing is hashed twice
    assert Identity("salt").uid(hashed) != hashed
    assert Identity().uid("") == ""


def test_no_two_uids_share_a_hash():
    assert len({Identity("s").uid(f"1.2.3.{k}") for k in range(5000)}) == 5000


def test_uids_are_replaced_wherever_they_stand_in_a_message():
    identity, hashed = Identity("s"), Identity("s").uid(STUDY_UID)
    for text in (f"/data/{STUDY_UID}/3.dcm: bad", f"{STUDY_UID}.nii.gz", f"series 4 ({STUDY_UID}): x", STUDY_UID):
        assert identity.text(text) == text.replace(STUDY_UID, hashed) == identity.text(identity.text(text))
    assert identity.text("kept 0.45 x 0.4 mm, 12.5 degrees") == "kept 0.45 x 0.4 mm, 12.5 degrees"
    assert identity.text("transfer syntax 1.2.840.10008.1.2.4.70") == "transfer syntax 1.2.840.10008.1.2.4.70"
    assert identity.text("/x/case-7/1.dcm", ["case-7"]) == f"/x/{identity.uid('case-7')}/1.dcm"
    assert identity.text("case-71", ["case-7"]) == "case-71"
    for name in (f"CT.{STUDY_UID}.8.dcm", f"CT_{STUDY_UID}", f"ST.{STUDY_UID}/1.dcm"):  # as archives name files
        said = identity.text(name)
        assert STUDY_UID not in said and said[:2] == name[:2] and "2.25." in said
    assert identity.text("ST.letters-1/2.dcm", ["letters-1"]) == f"ST.{identity.uid('letters-1')}/2.dcm"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, while it writes letters for a UID
def test_the_volume_and_all_messages_carry_hashed_uids(tmp_path):
    hu = make_volume((20, 34, 40))
    study = tmp_path / STUDY_UID
    write_series(study / "a", hu)
    write_series(study / "b", hu[::2], spacing_mm=(1.25, 0.45, 0.4), series_uid="series-of-letters.2")
    identity = Identity("s")
    volume = read_study(study, identity=identity)
    np.testing.assert_array_equal(volume.hu, hu)
    assert (volume.study_uid, volume.series_uid) == (identity.uid(STUDY_UID), identity.uid(SERIES_UID))
    assert len(volume.warnings) == 1 and identity.uid("series-of-letters.2") in volume.warnings[0]
    assert not any(uid in note for uid in (STUDY_UID, SERIES_UID, "letters") for note in volume.warnings)
    (study / "a" / "3.dcm").write_bytes(b"x")
    with pytest.raises(StudyError) as caught:
        read_study(study, identity=identity)
    assert STUDY_UID not in str(caught.value) and f"{identity.uid(STUDY_UID)}/a/3.dcm" in str(caught.value)


@pytest.mark.parametrize("flag", ["--hash_uids", "--hash_uids=s"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_inspect_says_no_uid(tmp_path, capsys, flag, form):
    write_series(tmp_path / STUDY_UID, make_volume((20, 34, 40)))
    main(["inspect", flag, *form, str(tmp_path / STUDY_UID)])
    said = "".join(capsys.readouterr())
    assert STUDY_UID not in said and SERIES_UID not in said
    assert Identity("s" if flag.endswith("=s") else "").uid(STUDY_UID) in said


PRIVATE = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711-77",
    "PatientBirthDate": "19470813",
    "AccessionNumber": "ACC99341X",
    "InstitutionName": "St. Elsewhere General",
    "ReferringPhysicianName": "House^Gregory",
    "PatientAddress": "Elm Street 13",
    "StudyDescription": "Neck of Jane",
    "SeriesDescription": "bone Doe",
    "ImageComments": "seen by House",
    "OperatorsName": "Ratched^N",
}
WORDS = re.compile("Doe|Jane|4711|19470813|ACC99341X|Elsewhere|House|Elm Street|Ratched", re.IGNORECASE)


def private(dataset, index):
    for name, value in PRIVATE.items():
        setattr(dataset, name, value)


def private_scout(dataset, index):
    private(dataset, index)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_inspect_says_nothing_of_the_patient(tmp_path, capsys, form):
    study = tmp_path / "study"
    files = write_series(study, make_volume((20, 34, 40)), edit=private)
    write_series(study, make_volume((1, 60, 60)), names=["scout.dcm"], edit=private_scout)
    main(["inspect", *form, str(study)])
    assert not WORDS.search("".join(capsys.readouterr()))
    whole = files[4].read_bytes()
    for element in (b"DS\x04\x002.5 ", b"DS\x08\x000.45\\0.4", b"DS\x06\x00-1024 ", b"LO\x10\x00MRN-4711-77"):
        if element not in whole:
            continue
        files[4].write_bytes(whole.replace(element, element[:4] + b"Doe^Jane"[: element[2]].ljust(element[2])))
        main(["inspect", *form, str(study)])
        assert not WORDS.search("".join(capsys.readouterr())), element
    for start in (
        b"CS\x02\x00CT",
        b"SH\x04\x00B70f",
        b"IS\x02\x002 ",
        b"UI\x1e\x001.2",
        b"UI\x20\x001.2",
        b"CS\x0c\x00MONOCHROME2 ",
    ):
        damaged, at = bytearray(whole), whole.find(start)
        while at >= 0:  # the whole value, of each element that begins so
            damaged[at + 4 : at + 4 + start[2]] = (b"Doe^Jane^Elm" * 3)[: start[2]]
            at = whole.find(start, at + 4)
        files[4].write_bytes(damaged)
        main(["inspect", *form, str(study)])
        assert not WORDS.search("".join(capsys.readouterr())), start


def test_a_report_is_json_with_and_without_hashing(tmp_path, capsys):
    write_series(tmp_path / "study", make_volume((20, 34, 40)), edit=private)
    reports = []
    for flags in ([], ["--hash_uids=s"]):
        main(["inspect", "--json", *flags, str(tmp_path / "study")])
        reports.append(json.loads(capsys.readouterr().out))
    assert {name for name in reports[0] if reports[0][name] != reports[1][name]} == {"study_uid", "series_uid"}
