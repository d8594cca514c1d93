"""Other spellings of a prompt."""

from service.text.respelling import respellings


def test_spellings_differ_from_the_text_and_have_their_names() -> None:
    assert respellings("Ça va") == {
        "leading_space": " Ça va",
        "lower": "ça va",
        "upper": "ÇA VA",
        "decomposed": "C\u0327a va",
    }
    assert respellings(" e\u0301") == {
        "no_leading_space": "e\u0301",
        "upper": " E\u0301",
        "composed": " é",
    }
    assert respellings("") == {"leading_space": " "}
