"""What a build makes of a study: the part of `build` that differs between slices and vertebra crops."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cspine_jax.ct.identity import Identity
from cspine_jax.data.features import Layout
from cspine_jax.data.index import Columns
from cspine_jax.data.tables import Note, StudyEntry, Tables


@dataclasses.dataclass(frozen=True)
class Made:
    """The records of one study.

    Attributes:
        examples: the records, made as they are asked for; at least one.
        shape: of their masks.
        notes: what had to be left out, and warnings of the reader.
    """

    examples: Iterable[dict[str, Any]]
    shape: tuple[int, ...]
    notes: tuple[Note, ...]


class Recipe(Protocol):
    """One kind of records. Goes to worker processes, so it must pickle."""

    @property
    def layout(self) -> Layout:
        """Of the records."""
        ...

    @property
    def columns(self) -> Columns:
        """Of their index."""
        ...

    def tables(self, manual_dir: str | Path, num_folds: int, identity: Identity | None) -> Tables:
        """The studies to go through, their UIDs still as they are.

        Raises:
            DataError: the folder cannot be used.
        """
        ...

    def parameters(self, tables: Tables) -> dict[str, Any]:
        """What else than the tables, the folds and the layout decides the records; kept in `metadata.json`."""
        ...

    def facts(self, tables: Tables) -> dict[str, Any]:
        """What `metadata.json` says besides, and nobody compares."""
        ...

    def differs(self, name: str, there: Mapping[str, Any]) -> str | None:
        """What records were made from whose parameter `name` is another (`there` is their metadata).

        None where the two values say enough.
        """
        ...

    def make(self, entry: StudyEntry, readers: int | None) -> Made | Note:
        """The records of a study; a note where it gives none.

        Args:
            entry: the study.
            readers: slices decoded at the same time, see `load_study`.

        Raises:
            Exception: of any kind; the study is left out for it.
        """
        ...
