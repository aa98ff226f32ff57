"""Both fracture rules by hand, the unknowns of the real data, and vertebra probabilities from each source."""

from types import SimpleNamespace

import numpy as np
import pytest

from cspine_jax.data.targets import slice_targets
from cspine_jax.errors import ConfigError


def study(levels=(), slices=(), boxes=None, mask=True, labels=True):
    """A study: fractured levels 1..7; per slice the levels seen there; slices with a box, None without boxes."""
    return SimpleNamespace(levels=levels, slices=slices, boxes=boxes, mask=mask, has_labels=labels)


class Table(SimpleNamespace):
    def __len__(self):
        return len(self.study)


def table_of(*studies):
    labels = np.array([[bool(s.levels), *(lv in s.levels for lv in range(1, 8))] for s in studies], np.uint8)
    rows = [(number, row) for number, s in enumerate(studies) for row in range(len(s.slices))]
    presence = [[lv in studies[n].slices[r] and studies[n].mask for lv in range(1, 8)] for n, r in rows]
    return Table(
        uids=np.array([f"1.{number}" for number in range(len(studies))]),
        labels=labels,
        has_labels=np.array([s.has_labels for s in studies]),
        has_mask=np.array([s.mask for s in studies]),
        has_boxes=np.array([s.boxes is not None for s in studies]),
        study=np.array([n for n, _ in rows]),
        index=np.array([r for _, r in rows]),
        slice_number=np.array([r + 1 for _, r in rows]),
        presence=np.array(presence, np.uint8),
        num_boxes=np.array([r in (studies[n].boxes or ()) for n, r in rows], np.int32),
    )


def targets(rule, *studies):
    return slice_targets(table_of(*studies), rule)


def levels(rows):
    return [sorted(np.flatnonzero(row) + 1) for row in rows]


ALL = list(range(1, 8))
C3_TO_C5 = ((3,), (3, 4), (4,), (5,))


def test_level_rule_with_a_mask():
    out = targets("level", study(levels=(4,), slices=C3_TO_C5))
    assert levels(out["presence"]) == [[3], [3, 4], [4], [5]]
    assert levels(out["fracture"]) == [[], [4], [4], []]
    assert levels(out["fracture_known"]) == [ALL] * 4
    assert out["slice_fracture"].tolist() == [0, 1, 1, 0]
    assert out["slice_known"].tolist() == out["presence_known"].tolist() == [1] * 4


def test_level_rule_without_a_mask():
    """Where C4 is cannot be known, that the others are whole can."""
    out = targets("level", study(levels=(4,), slices=C3_TO_C5, mask=False))
    assert levels(out["fracture"]) == levels(out["presence"]) == [[]] * 4
    assert levels(out["fracture_known"]) == [[1, 2, 3, 5, 6, 7]] * 4
    assert out["slice_known"].tolist() == out["presence_known"].tolist() == [0] * 4


@pytest.mark.parametrize("rule", ["level", "box"])
def test_a_negative_study_needs_neither_mask_nor_boxes(rule):
    out = targets(rule, study(slices=C3_TO_C5, mask=False))
    assert levels(out["fracture"]) == [[]] * 4
    assert levels(out["fracture_known"]) == [ALL] * 4
    assert out["slice_fracture"].tolist() == [0] * 4
    assert out["slice_known"].tolist() == [1] * 4


@pytest.mark.parametrize("rule", ["level", "box"])
def test_a_study_without_labels_says_nothing_of_fractures(rule):
    out = targets(rule, study(slices=C3_TO_C5, labels=False, boxes=(1,)))
    assert not out["fracture_known"].any()
    assert not out["slice_known"].any()
    assert not out["fracture"].any()
    assert out["presence_known"].all()


def test_box_rule_with_mask_and_boxes():
    """Two fractured levels; the box on the slice of both shows both, the slice without a box shows none."""
    out = targets("box", study(levels=(3, 4), slices=C3_TO_C5, boxes=(1, 3)))
    assert levels(out["fracture"]) == [[], [3, 4], [], []]
    assert levels(out["fracture_known"]) == [ALL] * 4
    assert out["slice_fracture"].tolist() == [0, 1, 0, 1]
    assert out["slice_known"].tolist() == [1] * 4


def test_box_rule_with_boxes_of_a_single_level_without_a_mask():
    out = targets("box", study(levels=(4,), slices=C3_TO_C5, boxes=(1,), mask=False))
    assert levels(out["fracture"]) == [[], [4], [], []]
    assert levels(out["fracture_known"]) == [ALL] * 4
    assert out["slice_fracture"].tolist() == [0, 1, 0, 0]
    assert out["slice_known"].tolist() == [1] * 4


def test_box_rule_with_boxes_of_two_levels_without_a_mask():
    """Which of the two a box shows is unknown; that slices without a box show neither is known."""
    out = targets("box", study(levels=(3, 4), slices=C3_TO_C5, boxes=(1,), mask=False))
    assert levels(out["fracture"]) == [[]] * 4
    assert levels(out["fracture_known"]) == [ALL, [1, 2, 5, 6, 7], ALL, ALL]
    assert out["slice_fracture"].tolist() == [0, 1, 0, 0]
    assert out["slice_known"].tolist() == [1] * 4


@pytest.mark.parametrize("mask", [True, False])
def test_box_rule_without_boxes(mask):
    """A mask tells where the vertebra is, not where in it the fracture is."""
    out = targets("box", study(levels=(4,), slices=C3_TO_C5, mask=mask))
    assert levels(out["fracture"]) == [[]] * 4
    assert levels(out["fracture_known"]) == [[1, 2, 3, 5, 6, 7]] * 4
    assert out["slice_known"].tolist() == [0] * 4


def test_studies_keep_apart():
    out = targets("box", study(levels=(4,), slices=C3_TO_C5, boxes=(2,)), study(slices=((4,),)))
    assert levels(out["fracture"]) == [[], [], [4], [], []]
    assert all(values.dtype == np.float32 for values in out.values())


def test_unknown_rule():
    with pytest.raises(ConfigError, match="must be level or box"):
        targets("boxes", study(slices=C3_TO_C5))


def test_predicted_vertebrae_stand_in_for_a_missing_mask_only():
    """C4 is fractured in both studies; the second has no mask, and the other model sees C4 on its first two slices."""
    seen = np.zeros((8, 7), bool)
    seen[:4, 0] = True  # of the masked study, where the mask knows better
    seen[4:6, 3] = True
    table = table_of(study(levels=(4,), slices=C3_TO_C5), study(levels=(4,), slices=C3_TO_C5, mask=False))
    out = slice_targets(table, "level", seen)
    assert levels(out["presence"]) == [[3], [3, 4], [4], [5], [4], [4], [], []]
    assert levels(out["fracture"]) == [[], [4], [4], [], [4], [4], [], []]
    assert levels(out["fracture_known"]) == [ALL] * 8 and out["presence_known"].all() and out["slice_known"].all()
    assert out["slice_fracture"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0]
    nothing = slice_targets(table, "level")
    assert levels(nothing["fracture"])[4:] == [[]] * 4 and not nothing["slice_known"][4:].any()


def test_slice_targets_of_records(table):
    """The same on real records: fractures only where level, mask and box meet."""
    out = slice_targets(table, "box")
    y = table.labels[table.study][:, 1:].astype(bool)
    expected = y & (table.presence > 0) & (table.num_boxes > 0)[:, None]
    masked = table.has_mask[table.study]
    np.testing.assert_array_equal(out["fracture"][masked] > 0, expected[masked] & (out["fracture_known"][masked] > 0))
    assert out["fracture"].sum() > 0
