"""The embedded data set: abstracts of research papers, with summaries by experts.

ACLSum (Takeshita et al., 2024, https://arxiv.org/abs/2403.05303): 250 papers of the ACL Anthology, each
summarized under three aspects.
"""

from collections.abc import Iterator

from batch_assets.errors import BatchAssetsError
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.dataset import Dataset, Part
from batch_assets.sources.records import Record

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_ASPECTS = ("challenge", "approach", "outcome")


class ACLSumDataset(Dataset):
    """One split of ACLSum. A paper's abstract is the document; its three expert summaries, joined, are the summary."""

    def __init__(
        self, split: str, batch_rows: int, limit: int | None = None, columns: ColumnMapping = XSUM_COLUMNS
    ) -> None:
        if split not in _SPLITS:
            raise BatchAssetsError(f"aclsum has no split {split!r}: use one of {', '.join(_SPLITS)}")
        super().__init__(f"aclsum/{split}", batch_rows, limit, columns)
        self._split = split

    @property
    def uri(self) -> str:
        """The page of the package that contains the data set."""
        return "https://pypi.org/project/aclsum/"

    def parts(self) -> list[Part]:
        """The split."""
        from importlib.metadata import version

        from aclsum import ACLSum

        count = len(ACLSum(_SPLITS[self._split]).documents)
        return [Part(f"aclsum-{self._split}", count, {"source": self.name, "package": f"aclsum {version('aclsum')}"})]

    def read(self, part: Part) -> Iterator[Record]:
        """Every paper as a record."""
        from aclsum import ACLSum

        for position, paper in enumerate(ACLSum(_SPLITS[self._split]).documents):
            fields = {
                "id": paper.id,
                "document": " ".join(paper.get_all_sentences(["abstract"])),
                "summary": " ".join(paper.summaries[aspect].strip() for aspect in _ASPECTS),
            }
            yield Record(self.name, position, fields, raw=paper.id)
