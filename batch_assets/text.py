"""Text helpers: the texts of a column, whether a text has visible characters, and its SHA-256."""

import hashlib
import re
from typing import TypeGuard

import pyarrow as pa

# Invisible characters, according to Unicode 17:
# https://www.unicode.org/Public/17.0.0/ucd/DerivedCoreProperties.txt (Default_Ignorable_Code_Point) and
# https://www.unicode.org/Public/17.0.0/ucd/extracted/DerivedGeneralCategory.txt (Cc, Cf, Zs, Zl, Zp).
_INVISIBLE = (
    r"\x00-\x20\x7f-\xa0"  # controls, tab, line ends, space, no-break space
    r"\xad"  # soft hyphen
    r"\u034f"  # combining grapheme joiner
    r"\u061c"  # Arabic letter mark
    r"\u115f\u1160\u3164\uffa0"  # Hangul fillers
    r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # other spaces, line and paragraph separators
    r"\u17b4\u17b5"  # Khmer inherent vowels
    r"\u180b-\u180f"  # Mongolian variation selectors and vowel separator
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # zero-width characters, bidi controls, byte order mark
    r"\u2800"  # Braille pattern blank, which no Unicode property marks as invisible
    r"\ufe00-\ufe0f\U000e0000-\U000e0fff"  # variation selectors, tags
    r"\ufff0-\ufffb"  # reserved, interlinear annotation
    r"\U00013430-\U0001343f"  # Egyptian hieroglyph format controls
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # shorthand and musical format controls
)
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")


def has_text(document: str | None) -> TypeGuard[str]:
    """Whether a document has at least one visible character.

    Invisible characters are white space, control characters, format characters (category Cf, except the Arabic, Syriac
    and Kaithi number signs, which are visible), Unicode's Default_Ignorable_Code_Point (zero-width characters, fillers,
    variation selectors, tags), and the Braille blank. Every other character counts as text: a digit, a full stop,
    an emoji, U+FFFD.
    """
    return document is not None and _VISIBLE.search(document) is not None


def valid_text(column: pa.Array) -> pa.Array:
    """A column of texts in valid UTF-8. Other bytes, which Parquet files and Spark may contain, become U+FFFD."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        stored = column.cast(pa.binary()).to_pylist()
        return pa.array([None if raw is None else raw.decode("utf-8", "replace") for raw in stored], column.type)
    return column


def texts_of(column: pa.Array) -> list[str | None]:
    """Texts of a column that comes from Spark; bytes that are not valid UTF-8 become U+FFFD."""
    texts: list[str | None] = valid_text(column).to_pylist()
    return texts


def sha256_of(text: str) -> str:
    """SHA-256 of a text, to identify it where the text itself must not be stored."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def label_key(label: str) -> str:
    """What is compared of a label: not its case, nor blanks, quotation marks and full stops around it."""
    return label.strip().strip("\"'`.").strip().casefold()
