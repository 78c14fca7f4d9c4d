"""Which columns of a record hold its id, its text, its reference answer, and what is carried along."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batch_assets.settings import EXTRACTION, Settings
from batch_assets.text_template import TextTemplate


@dataclass(frozen=True)
class ColumnMapping:
    """The columns of a pipeline's source; the defaults are those of XSum.

    ``text`` names a column or is a template over several. ``carry`` names columns that are copied as text.
    ``is_reference_json`` is true where references may be objects, which are kept as JSON.
    """

    id: str = "id"
    text: str = "document"
    reference: str | None = "summary"
    carry: tuple[str, ...] = ()
    is_reference_json: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "ColumnMapping":
        """The mapping of a pipeline."""
        return cls(settings.id_column, settings.text, settings.reference, settings.carry, settings.task == EXTRACTION)

    @cached_property
    def template(self) -> TextTemplate:
        """The template of the text."""
        return TextTemplate(self.text)

    @cached_property
    def names(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([self.id, *self.template.columns, *filter(None, [self.reference]), *self.carry]))

    def missing_from(self, fields: Mapping[str, Any]) -> list[str]:
        """Columns of the text that a record lacks."""
        return [name for name in self.template.columns if name not in fields]


XSUM_COLUMNS = ColumnMapping()
