"""Crops by predicted masks: which folder's mask a study gets, and which it must not get."""

import dataclasses
import json
import os

import numpy as np
import pytest

from cspine_jax.config import CropsConfig
from cspine_jax.ct import Identity
from cspine_jax.data.crops import CropTable, build_crops
from cspine_jax.data.crops.masks import masked
from cspine_jax.data.tables import read_tables
from cspine_jax.errors import DataError
from tests.data.rsna_folder import write_folder, write_mask

CROPS = CropsConfig(positions=3, radius=1, size=16)
SLICES = "StudyInstanceUID,slice_index,slice_number,C1,C2,C3,C4,C5,C6,C7\n"


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna")
    return root, write_folder(root, studies=5)


def segment(folder, made, uids, parts=None, name=str):
    """As `cspine segment --out folder` would leave it, with the masks shifted by two pixels."""
    for uid in uids:
        write_mask(folder / uid / "vertebrae.nii.gz", np.roll(made[uid].mask, 2, axis=2), sagittal=False)
        (folder / uid / "vertebrae.json").write_text(json.dumps({"study_uid": name(uid), "vertebrae": []}))
    (folder / "slices.csv").write_text(SLICES)
    if parts:
        rows = "".join(f"{uid},{part}\n" for uid, part in parts.items())
        (folder / "part.csv").write_text("StudyInstanceUID,part\n" + rows)


def chosen(rsna, source):
    tables = masked(read_tables(rsna), str(source))
    return {entry.uid: entry.mask.parent.parent.name for entry in tables.studies}, tables.notes


def test_crops_by_predicted_masks(rsna, tmp_path):
    root, made = rsna
    uids = sorted(made)
    segment(tmp_path / "seg", made, uids[1:])  # 1.2.104 has no true mask
    config = dataclasses.replace(CROPS, masks=str(tmp_path / "seg"))
    result = build_crops(root, tmp_path, config, workers=1)
    true = CropTable.open(build_crops(root, tmp_path, CROPS, workers=1).path)
    table = CropTable.open(result.path)
    assert result.path.parent.name == "crops3r1_size16_segmented" and table.layout.segmented
    assert table.uids.tolist() == uids[1:] and [note.uid for note in result.skipped] == uids[:1]
    assert true.uids.tolist() == uids[:4]
    one, other = true.record[1, 3], table.record[0, 3]  # two pixels further to the left of the patient
    np.testing.assert_allclose(table.origin[other, :, 2], true.origin[one, :, 2] + 2, atol=1e-5)
    np.testing.assert_array_equal(table.read(np.array([other]))[1], true.read(np.array([one]))[1])

    # The same masks elsewhere are the same; other masks are not.
    assert build_crops(root, tmp_path, config, workers=1).new == 0
    os.rename(tmp_path / "seg", tmp_path / "moved")
    config = dataclasses.replace(config, masks=str(tmp_path / "mov*"))
    assert build_crops(root, tmp_path, config, workers=1).new == 0
    write_mask(tmp_path / "moved" / uids[2] / "vertebrae.nii.gz", made[uids[2]].mask)
    with pytest.raises(DataError, match=r"other masks than those now in '.*mov\*' \(built from '.*seg'\).*--overwrite"):
        build_crops(root, tmp_path, config, workers=1)


def test_a_model_lends_no_mask_of_a_study_it_learnt_from(rsna, tmp_path):
    root, made = rsna
    a, b, c, d, e = sorted(made)
    segment(tmp_path / "seg", made, made, {a: "train", b: "validation", c: "test", d: "none"})
    found, notes = chosen(root, tmp_path / "seg")
    assert set(found) == {c, d, e}  # of e nothing is said
    assert {note.uid for note in notes if "learnt from this study (part" in note.reason} == {a, b}
    (tmp_path / "seg" / "part.csv").unlink()
    assert set(chosen(root, tmp_path / "seg")[0]) == set(made)
    header, *_ = SLICES.replace("slice_index", "part").splitlines()
    (tmp_path / "seg" / "slices.csv").write_text(f"{header}\n{a},train{',0' * 8}\n{b},test{',0' * 8}\n")
    assert set(chosen(root, tmp_path / "seg")[0]) == {b, c, d, e}
    (tmp_path / "seg" / "part.csv").write_text(f"StudyInstanceUID,part\n{a},test\n")
    with pytest.raises(DataError, match=rf"slices\.csv:2: study {a} is named 'train' here and 'test' before"):
        chosen(root, tmp_path / "seg")
    (tmp_path / "seg" / "part.csv").write_text(f"StudyInstanceUID,part\n{a},fold0\n")
    with pytest.raises(DataError, match=r"part\.csv:2: part 'fold0' must be train, validation, test or none"):
        chosen(root, tmp_path / "seg")


def test_weights_that_learnt_from_real_studies_have_to_say_which(rsna, tmp_path):
    root, made = rsna
    segment(tmp_path / "seg", made, sorted(made)[:2])
    for uid, phantom in zip(sorted(made), (True, False), strict=False):
        report = {"study_uid": uid, "model": {"weights": "mine", "trained_on_phantoms_only": phantom}}
        (tmp_path / "seg" / uid / "vertebrae.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=r"seg: .*learnt from real studies \(mine\).*part.csv \(columns Study"):
        chosen(root, tmp_path / "seg")
    (tmp_path / "seg" / "part.csv").write_text("StudyInstanceUID,part\n")
    assert set(chosen(root, tmp_path / "seg")[0]) == set(sorted(made)[:2])


def test_all_in_sample_is_an_error(rsna, tmp_path):
    root, made = rsna
    segment(tmp_path / "seg", made, made, dict.fromkeys(made, "train"))
    with pytest.raises(DataError, match=r"none of 5 studies has a usable mask; first: 1\.2\.100: .*learnt from"):
        build_crops(root, tmp_path, dataclasses.replace(CROPS, masks=str(tmp_path / "seg")), workers=1)


def test_one_folder_a_fold(rsna, tmp_path):
    root, made = rsna
    a, b, c, d, e = sorted(made)
    segment(tmp_path / "fold0", made, made, {a: "test", b: "test", c: "train", d: "train", e: "none"})
    segment(tmp_path / "fold1", made, (a, b, c, d), {a: "train", b: "validation", c: "test", d: "test"})
    found, _ = chosen(root, tmp_path / "fold*")
    assert found == {a: "fold0", b: "fold0", c: "fold1", d: "fold1", e: "fold0"}
    segment(tmp_path / "fold2", made, (a, c))  # says nothing, so those that say "test" come first
    assert chosen(root, tmp_path / "fold*")[0] == found
    for part in ("none", "test"):
        segment(tmp_path / "fold2", made, (e, d), {e: part, d: part})
        with pytest.raises(DataError, match=r"fold\d/.* and .*fold2/.*: two masks of study 1\.2\.10[34]; give one"):
            chosen(root, tmp_path / ("fold[02]" if part == "none" else "fold[12]"))
        with pytest.raises(DataError, match=r"two masks of study"):
            segment(tmp_path / "same", made, (a,))
            segment(tmp_path / "same2", made, (a,))
            chosen(root, tmp_path / "same*")


def test_masks_that_cannot_be_used(rsna, tmp_path):
    root, made = rsna
    uid = min(made)
    with pytest.raises(DataError, match=r"nowhere: no such folder; crops\.masks must be true or"):
        masked(read_tables(root), str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no <study>/vertebrae\.json"):
        masked(read_tables(root), str(tmp_path / "empty"))
    segment(tmp_path / "seg", made, (uid,))
    report = tmp_path / "seg" / uid / "vertebrae.json"
    for text in ("{", "{}", "[]"):
        report.write_text(text)
        with pytest.raises(DataError, match=r"vertebrae\.json: names no study_uid"):
            masked(read_tables(root), str(tmp_path / "seg"))
    segment(tmp_path / "seg", made, (uid,))
    (tmp_path / "seg" / uid / "vertebrae.nii.gz").unlink()
    with pytest.raises(DataError, match=r"vertebrae\.nii\.gz: no such file"):
        masked(read_tables(root), str(tmp_path / "seg"))


def test_masks_under_hashed_uids(rsna, tmp_path):
    root, made = rsna
    identity = Identity("s")
    segment(tmp_path / "seg", made, made, name=identity.uid)
    with pytest.raises(DataError, match="none of 5 studies has a usable mask"):
        masked(read_tables(root), str(tmp_path / "seg"))
    assert len(masked(read_tables(root), str(tmp_path / "seg"), identity).studies) == 5
