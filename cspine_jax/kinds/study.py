"""Models of whole studies: document A's classifiers, document C's 3D transformer, the 3D CNN; on studies or clips."""

import functools

import numpy as np

from cspine_jax.config import Config
from cspine_jax.data.views import ClipView, SlicesView, View
from cspine_jax.kinds.on_targets import NETWORK, OnTargets, Roster
from cspine_jax.kinds.records import Records, find_records
from cspine_jax.training.crops_task import study_level_task


class Study(OnTargets):
    """Slices of a study in, the eight targets out.

    With a mask channel, and with clips, studies without a mask are left out (and named).
    """

    of_the_model = (*NETWORK, "data.size", "data.depth", "data.stride")

    def __init__(self, config: Config):
        self.config, self.task = config, study_level_task(config)

    @functools.cached_property
    def data(self) -> Records:
        """The records, found or made."""
        return find_records(self.config.data)

    @functools.cached_property
    def roster(self) -> Roster:
        """See `OnTargets`."""
        table = self.data.table
        studies, left_out = np.arange(len(table.uids)), {}
        if self.config.study.with_mask or self.config.study.clip_depth:
            bare = np.flatnonzero(~table.has_mask)
            studies = np.flatnonzero(table.has_mask)
            if bare.size:
                left_out["no mask"] = [str(uid) for uid in table.uids[bare]]
        return Roster(
            path=table.path,
            uids=table.uids[studies],
            labels=table.labels[studies],
            has_labels=table.has_labels[studies],
            folds=table.folds[studies],
            row=studies,
            left_out=left_out,
        )

    @functools.cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """See `OnTargets`."""
        place = np.full(len(self.data.table.uids), -1)
        place[self.roster.row] = np.arange(len(self.roster.row))
        parts = {part: place[studies] for part, studies in self.data.parts.items()}
        return {part: positions[positions >= 0] for part, positions in parts.items()}

    @functools.cached_property
    def view(self) -> View:
        """See `OnTargets`."""
        view = ClipView if self.config.study.clip_depth else SlicesView
        return view(self.data.table, self.config.data, self.config.study)

    def prepare(self) -> None:
        """Finds or makes the records; see `OnTargets`."""
        super().prepare()
        self.data.table.check_shape(self.roster.row)

    @property
    def phantom(self) -> bool:
        """See `OnTargets`."""
        return self.data.phantom

    @property
    def seen(self) -> dict[str, float]:
        """See `OnTargets`."""
        return self.data.table.seen

    def network(self) -> str:
        """See `OnTargets`."""
        study, data = self.config.study, self.config.data
        name = f"{study.model}, {self.config.model.backbone}" if study.model == "classifier" else study.model
        if isinstance(self.view, SlicesView):
            seen = f"{self.view.length} positions"
        else:
            seen = f"clips of {study.clip_depth} positions"
        mask = " and mask" if study.with_mask else ""
        return f"{name}, {seen} of {data.depth} slices{mask}, {data.size or 'native'} px"
