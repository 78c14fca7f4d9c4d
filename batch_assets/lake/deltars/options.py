"""Validate the options of a read or a write, which Spark passes as text."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.storage import root_of

_STORAGE = "storage."
READING = ("versionAsOf", "columns", "partition")
WRITING = ("partition", "partitionColumns", "readVersion", "mergeSchema", "overwriteSchema", "txnAppId", "txnVersion")


class Options:
    """The options of one read or write; ``known`` lists the allowed names.

    Raises:
        BatchAssetsError: an option is unknown, or the path is missing.
    """

    def __init__(self, options: Mapping[str, str], known: Sequence[str]) -> None:
        self._options = {key.lower(): value for key, value in options.items()}
        names = {name.lower(): name for name in ("path", *known)}
        what = "reading" if known is READING else "writing"
        for key in self._options:
            if key not in names and not key.startswith(_STORAGE):
                near = [names[name] for name in get_close_matches(key, names, 1)]
                hint = f"did you mean {near[0]}?" if near else f"use {', '.join(names.values())} or storage.*"
                raise BatchAssetsError(f"deltars has no option {key} for {what}: {hint}")
        if "path" not in self._options:
            raise BatchAssetsError("deltars needs the path of a table: pass it to .load(uri) or .save(uri)")
        self.uri = root_of(self._options["path"])
        # delta-rs accepts its storage options in lower case.
        self.storage = {
            key.removeprefix(_STORAGE): value for key, value in self._options.items() if key.startswith(_STORAGE)
        }

    def text(self, name: str) -> str | None:
        """Return an option, None if it is not set."""
        return self._options.get(name.lower())

    def names(self, name: str) -> list[str] | None:
        """Return an option that is a comma-separated list of names, None if it is not set.

        Raises:
            BatchAssetsError: a name is empty or repeated.
        """
        text = self.text(name)
        if text is None:
            return None
        names = [part.strip() for part in text.split(",")]
        if "" in names or len(set(names)) != len(names):
            raise BatchAssetsError(
                f"the option {name} is {text!r}: it must be a list of different names, separated by commas"
            )
        return names

    def number(self, name: str) -> int | None:
        """Return an option that is a non-negative integer, None if it is not set.

        Raises:
            BatchAssetsError: the option is something else.
        """
        text = self.text(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise BatchAssetsError(f"the option {name} is {text!r}: it must be a number")
        return int(text)

    def flag(self, name: str) -> bool:
        """Return an option that is true or false; false if it is not set.

        Raises:
            BatchAssetsError: the option is something else.
        """
        text = (self.text(name) or "false").lower()
        if text not in ("true", "false"):
            raise BatchAssetsError(f"the option {name} is {text!r}: it must be true or false")
        return text == "true"

    def partition(self) -> dict[str, Any] | None:
        """Return the partition to read or to replace, as column to value, parsed from JSON; None if it is not set.

        Raises:
            BatchAssetsError: the option is not a JSON object.
        """
        text = self.text("partition")
        if text is None:
            return None
        try:
            partition = json.loads(text)
        except json.JSONDecodeError as error:
            raise BatchAssetsError(f"the option partition is {text!r}, which is not valid JSON: {error}") from error
        if not isinstance(partition, dict):
            raise BatchAssetsError(
                f'the option partition is {text}: it must be a JSON object such as {{"day": "2026-01-31"}}'
            )
        return partition
