"""Other spellings of a text, which a reader may take for the same and a tokenizer does not."""

import unicodedata
from typing import Literal

Spelling = Literal["leading_space", "no_leading_space", "lower", "upper", "composed", "decomposed"]


def respellings(text: str) -> dict[Spelling, str]:
    """The text in other spellings, by their names; those that change nothing are left out."""
    spellings: dict[Spelling, str] = {
        "leading_space": text if text.startswith(" ") else f" {text}",
        "no_leading_space": text.lstrip(" "),
        "lower": text.lower(),
        "upper": text.upper(),
        "composed": unicodedata.normalize("NFC", text),
        "decomposed": unicodedata.normalize("NFD", text),
    }
    return {name: other for name, other in spellings.items() if other != text}
