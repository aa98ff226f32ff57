"""What `cspine predict` writes and says holds no patient, and with hashing no UID."""

import re
import shutil

import pydicom

from cspine_jax.cli import main
from cspine_jax.ct import Identity

PATIENT = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711", "PatientBirthDate": "19470813",
           "AccessionNumber": "ACC99341X", "InstitutionName": "Elsewhere"}  # fmt: skip
WORDS = re.compile(r"Doe|Jane|4711|19470813|ACC99341X|Elsewhere")


def test_findings_and_tables_hold_neither_patient_nor_uid(folder, workdir, tmp_path, capfd):
    source = sorted((folder / "train_images").iterdir())[0]
    good, bad = tmp_path / "in" / source.name, tmp_path / "in" / f"{source.name}.9"
    shutil.copytree(source, good)
    for file in good.iterdir():
        dataset = pydicom.dcmread(file)
        for name, value in PATIENT.items():
            setattr(dataset, name, value)
        dataset.save_as(file)
    uids = {str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)}
    shutil.copytree(good, bad)
    next(bad.iterdir()).write_bytes(b"Doe^Jane")
    out = tmp_path / "out"
    assert (
        main(
            ["predict", "--no_segment", "--hash_uids=s", f"--checkpoint={workdir}", f"--out={out}", str(good), str(bad)]
        )
        == 0
    )
    said = "".join(capfd.readouterr())
    assert "left out" in said and (out / Identity("s").uid(str(dataset.StudyInstanceUID)) / "findings.json").is_file()
    texts = [said]
    for file in out.rglob("*"):
        texts += [file.name, file.read_text() if file.is_file() else ""]
    assert not any(WORDS.search(text) for text in texts)
    assert not any(uid in text for uid in uids for text in texts)
