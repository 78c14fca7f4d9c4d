"""A data set: its parts are split into batches and read batch by batch."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.names import batch_from
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.records import Document, Record, Rejected, validate
from batch_assets.text import has_text

# Room for a suffix from -0001 to -9999999, when a part is split into several batches.
_SUFFIX_ROOM = 8
# Records to check. One bad record must not fail the whole file; it is rejected later.
_CHECKED_RECORDS = 100

# A changed batch is read twice: once to see that it changed.
_MAX_READERS = 2


@dataclass(frozen=True)
class Part:
    """A file or a split: its name, its number of records, and what they were made from.

    ``provenance`` holds at least ``source``, which says where the part is. It must change whenever a record does: a
    batch with the provenance that its commit recorded is not read again.
    """

    name: str
    records: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Slice:
    """The records of a part that form one batch."""

    part: Part
    start: int
    stop: int


class Dataset(ABC):
    """Documents that can be read repeatedly, always in the same order.

    Args:
        name: display name.
        batch_rows: maximum number of records per batch.
        limit: read at most this many records; None for all.
        columns: where a record has its id, text and reference.
    """

    def __init__(
        self, name: str, batch_rows: int, limit: int | None = None, columns: ColumnMapping = XSUM_COLUMNS
    ) -> None:
        self.name = name
        self.columns = columns
        self._batch_rows = batch_rows
        self._limit = limit
        self._readers: list[tuple[Part, int, Iterator[Record]]] = []

    @abstractmethod
    def parts(self) -> list[Part]:
        """The files or splits, in order."""

    @abstractmethod
    def read(self, part: Part) -> Iterator[Record]:
        """The records of one part, in order."""

    @property
    def uri(self) -> str:
        """Location of the data set."""
        return self.name

    @cached_property
    def _slices(self) -> dict[str, Slice]:
        slices: dict[str, Slice] = {}
        remaining = self._limit
        for part in self.parts():
            records = part.records if remaining is None else min(part.records, remaining)
            remaining = None if remaining is None else remaining - records
            try:
                key = batch_from(part.name, room=_SUFFIX_ROOM)
            except ValueError as error:
                raise BatchAssetsError(str(error)) from error
            starts = range(0, records, self._batch_rows)
            for number, start in enumerate(starts, 1):
                name = key if len(starts) == 1 else f"{key}-{number:04d}"
                if name in slices:
                    raise BatchAssetsError(
                        f"{part.name} and {slices[name].part.name} of {self.name} would both become the batch "
                        f"{name}: rename one of them"
                    )
                slices[name] = Slice(part, start, min(start + self._batch_rows, records))
        return slices

    def batches(self) -> list[str]:
        """Keys of the batches, in order."""
        return list(self._slices)

    def records(self, batch: str) -> Iterator[Record]:
        """Records of one batch, in order. Reading consecutive batches goes through each part only once."""
        wanted = self._slices[batch]
        place = (wanted.part, wanted.start)
        reader = next((reader for reader in self._readers if reader[:2] == place), None)
        if reader is None:
            reader = (*place, islice(self.read(wanted.part), wanted.start, None))
        else:
            self._readers.remove(reader)
        records = reader[2]
        yield from islice(records, wanted.stop - wanted.start)
        self._readers = [*self._readers, (wanted.part, wanted.stop, records)][-_MAX_READERS:]

    def provenance(self, batch: str) -> dict[str, Any]:
        """The source of the batch: names, sizes and digests."""
        part = self._slices[batch]
        # With other columns, the same records become other documents.
        columns = {} if self.columns == XSUM_COLUMNS else {"columns": json.loads(json.dumps(asdict(self.columns)))}
        return {**part.part.provenance, "first_record": part.start, "records": part.stop - part.start, **columns}

    def check(self) -> None:
        """Check the first records of each part.

        Raises:
            BatchAssetsError: the data set can't be read, is empty or lacks a column of the text.
        """
        if not self.batches():
            raise BatchAssetsError(f"the data set {self.name} has no records")
        for part in self.parts():
            if part.records == 0:
                continue
            first = list(islice(self.read(part), _CHECKED_RECORDS))
            fields = [record.fields for record in first if record.fields is not None]
            if not fields:
                raise BatchAssetsError(f"{part.name} of the data set {self.name} can't be read: {first[0].problem}")
            if all(self.columns.missing_from(record) for record in fields):
                found = ", ".join(sorted(fields[0])) or "none"
                missing = self.columns.missing_from(fields[0])[0]
                raise BatchAssetsError(
                    f"{part.name} of the data set {self.name} has no column '{missing}' (columns: {found}): rename "
                    "the column that holds the text, or name it in BATCH_ASSETS_TEXT (columns.text in a pipeline's "
                    "file), and its reference answer, if any, in BATCH_ASSETS_REFERENCE (columns.reference)"
                )

    def held_out(self, count: int) -> list[Document]:
        """The first documents that have both a text and a reference.

        Raises:
            BatchAssetsError: no document has both.
        """
        found: list[Document] = []
        for part in self.parts():
            for item in validate(self.read(part), self.columns):
                if isinstance(item, Rejected) or not has_text(item.document) or not has_text(item.reference):
                    continue
                found.append(item)
                if len(found) == count:
                    return found
        if not found:
            if self.columns.reference is None:
                raise BatchAssetsError(
                    f"{self.name} can't be used to evaluate a model: name the column with the reference answers in "
                    "columns.reference"
                )
            raise BatchAssetsError(
                f"no document of {self.name} has a '{self.columns.reference}' to compare with: set "
                "BATCH_ASSETS_EVALUATION_DATASET (evaluation.dataset in a pipeline's file) to a data set with the "
                f"columns {', '.join(map(repr, [*self.columns.template.columns, self.columns.reference]))}"
            )
        return found


class NoDataset(Dataset):
    """The data set of a pipeline whose documents come from elsewhere."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1)

    def parts(self) -> list[Part]:
        """None."""
        return []

    def read(self, part: Part) -> Iterator[Record]:
        """No records."""
        return iter(())

    def check(self) -> None:
        """Nothing to check."""


def digest_documents(documents: list[Document]) -> str:
    """SHA-256 over ids, texts and references."""
    rows = [[item.id, item.document, item.reference] for item in documents]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
