"""What counts as text."""

import sys
import unicodedata

import pytest

from batch_assets.text import has_text

# Default_Ignorable_Code_Point without category Cf, plus the Braille blank:
# https://www.unicode.org/Public/17.0.0/ucd/DerivedCoreProperties.txt
IGNORABLE = {
    0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2065, 0x2800, 0x3164, *range(0xFE00, 0xFE10),
    0xFFA0, *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000),
}  # fmt: skip
# Visible format characters, Prepended_Concatenation_Mark: https://www.unicode.org/Public/17.0.0/ucd/PropList.txt
SHOWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
# Format controls that older Pythons don't know yet.
NEWER = set(range(0x13430, 0x13440))


@pytest.mark.parametrize(
    "document",
    [
        None,
        "",
        " \t\n",
        "\u00a0\u3000\u2028",
        "\u200b\u200d",
        "\ufeff",
        "\u00ad\u2060\u202e",
        "\u3164\u2800",
        "\x00\x1b",
    ],
)
def test_blanks_and_invisible_characters_do_not_count_as_text(document):
    assert not has_text(document)


@pytest.mark.parametrize(
    "document",
    [".", "0", "\U0001f642", "\u2764\ufe0f", "\u200b-\u200b", "\ud83d", "\ufffd", "\u0301", "\u2801", "\u06dd"],
)
def test_a_single_visible_character_counts_as_text(document):
    assert has_text(document)


def test_a_character_counts_as_text_unless_unicode_classifies_it_as_blank_control_or_invisible():
    invisible = {"Cc", "Cf", "Zs", "Zl", "Zp"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        expected = code in SHOWN or not (
            unicodedata.category(character) in invisible or code in IGNORABLE or code in NEWER or character.isspace()
        )
        assert has_text(character) == expected, hex(code)
