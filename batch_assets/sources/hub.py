"""Data sets on the Hugging Face hub, such as EdinburghNLP/xsum."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError, raise_if_of_this_machine
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.dataset import Dataset, Part
from batch_assets.sources.records import Record

# datasets >= 4 refuses data sets that contain a script; the hub keeps a converted copy on this branch.
_CONVERTED = "refs/convert/parquet"


class HubDataset(Dataset):
    """One split of a data set on the hub, downloaded once into ``cache``."""

    def __init__(
        self,
        name: str,
        split: str,
        cache: Path,
        batch_rows: int,
        limit: int | None = None,
        columns: ColumnMapping = XSUM_COLUMNS,
        config: str | None = None,
    ) -> None:
        super().__init__("/".join(filter(None, (name, config, split))), batch_rows, limit, columns)
        self._id = name
        self._config = config
        self._split = split
        self._cache = cache
        self._loaded: Any = None

    @property
    def uri(self) -> str:
        """Its page on the hub."""
        return f"https://huggingface.co/datasets/{self._id}"

    def _load(self) -> Any:
        if self._loaded is None:
            import datasets

            def load(revision: str | None) -> Any:
                return datasets.load_dataset(
                    self._id, self._config, split=self._split, revision=revision, cache_dir=str(self._cache)
                )

            try:
                try:
                    self._loaded = load(None)
                except RuntimeError as error:
                    if "script" not in str(error):
                        raise
                    self._loaded = load(_CONVERTED)
            except (OSError, ValueError, RuntimeError) as error:
                raise_if_of_this_machine(error)
                raise BatchAssetsError(
                    f"the data set {self._id} can't be loaded from the Hugging Face hub ({_first_line(error)}): "
                    "check the name and the network, or use aclsum, which needs no hub (BATCH_ASSETS_DATASET=aclsum, "
                    "or source.dataset in a pipeline's file)"
                ) from error
        return self._loaded

    def check(self) -> None:
        """Load the split and check its first records.

        Raises:
            BatchAssetsError: the hub can't be reached, or the data set, split or column does not exist.
        """
        self._load()
        super().check()

    def parts(self) -> list[Part]:
        """The split."""
        loaded = self._load()
        name = "-".join(filter(None, (self._id, self._config, self._split)))
        return [Part(name, loaded.num_rows, {"source": self.uri, "digest": loaded._fingerprint})]

    def read(self, part: Part) -> Iterator[Record]:
        """Every row of the split."""
        for position, fields in enumerate(self._load()):
            yield Record(self.name, position, fields, raw=str(fields))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
