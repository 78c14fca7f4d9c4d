"""Whether a document has any text."""

import re
from typing import TypeGuard

# Characters that leave no mark on a page. The lists are those of Unicode 17:
# https://www.unicode.org/Public/17.0.0/ucd/DerivedCoreProperties.txt (Default_Ignorable_Code_Point) and
# https://www.unicode.org/Public/17.0.0/ucd/extracted/DerivedGeneralCategory.txt (Cc, Cf, Zs, Zl, Zp).
_INVISIBLE = (
    r"\x00-\x20\x7f-\xa0"  # controls, tab, line ends, space, no-break space
    r"\xad"  # soft hyphen
    r"\u034f"  # combining grapheme joiner
    r"\u061c"  # Arabic letter mark
    r"\u115f\u1160\u3164\uffa0"  # Hangul fillers
    r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # the other spaces, line and paragraph separator
    r"\u17b4\u17b5"  # Khmer inherent vowels
    r"\u180b-\u180f"  # Mongolian variation selectors and vowel separator
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # zero-width characters, bidi controls, byte order mark
    r"\u2800"  # Braille pattern blank, which no property of Unicode calls invisible
    r"\ufe00-\ufe0f\U000e0000-\U000e0fff"  # variation selectors, tags
    r"\ufff0-\ufffb"  # reserved, interlinear annotation
    r"\U00013430-\U0001343f"  # Egyptian hieroglyph format controls
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # shorthand and musical format controls
)
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")


def has_text(document: str | None) -> TypeGuard[str]:
    """Whether a document has at least one visible character.

    None, an empty document, and one of nothing but blanks and invisible characters have no text. Invisible are white
    space, control characters, format characters (category Cf, without the Arabic, Syriac and Kaithi number signs, which
    are visible), what Unicode's property Default_Ignorable_Code_Point names (zero-width characters, fillers, variation
    selectors, tags), and the Braille blank. Every other character is text: a digit, a full stop, an emoji, U+FFFD.
    """
    return document is not None and _VISIBLE.search(document) is not None
