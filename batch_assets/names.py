"""Checks for names that become part of a path or of SQL."""

import re
import unicodedata

_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")
_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Return a catalog, schema, table or model name unchanged.

    Raises:
        ValueError: the name is not 1 to 100 characters of ``A-Za-z0-9_``.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name: use 1 to 100 characters of A-Z, a-z, 0-9 and _")
    return name


def is_batch(value: str) -> bool:
    """Whether a value is a valid batch key: 1 to 100 characters of ``A-Za-z0-9._-``, a letter or digit first."""
    return bool(_BATCH.fullmatch(value))


def check_batch(batch: str) -> str:
    """Return a batch key unchanged.

    Raises:
        ValueError: the key is not valid.
    """
    if not is_batch(batch):
        raise ValueError(
            f"{batch!r} can't name a batch: use 1 to 100 characters of A-Z, a-z, 0-9, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    return batch


def batch_from(text: str, *, room: int = 0) -> str:
    """Derive a batch key from any text, such as a file's stem or a data set's name.

    Args:
        text: source of the key.
        room: characters to leave free for a suffix.

    Raises:
        ValueError: the text has no usable character.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    key = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[: 100 - room]
    if not key:
        raise ValueError(f"can't derive a batch key from {text!r}: use a name with letters or digits")
    return check_batch(key)
