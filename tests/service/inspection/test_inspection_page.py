"""The page of `headlight inspect --html` in a real browser, from a file, without any server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from service import cli
from service.api.schemas.inspection import InspectedEncoding, InspectedToken, Inspection, Numbers
from service.inspection.page import page_of
from tests.service.page.browser import MISSING, Browser, browsing, faults

TEXT = "<b>서울!</b>"
HEADS = [[0, 1], [2, 3], [2, 0]]
ASKED = (
    "--attention",
    "0.1,2.3,2.0",
    "--lens",
    "--residual",
    "--embedding",
    "--position-encoding",
    "--details",
    "--spellings",
    "--distribution",
    "--temperature",
    "0.5",
    "--top-k",
    "9",
)
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 &amp; {policy} \\"


def answer_in(page: str) -> Any:
    (written,) = re.findall(r'<script type="application/json" id="answer">(.*?)</script>', page, re.DOTALL)
    return json.loads(written)


def test_no_text_of_a_token_ends_the_data_or_is_lost() -> None:
    tokens = [InspectedToken(id=1, text=HOSTILE, special=False, generated=False)]
    page = page_of(Inspection(object="inspection", model=HOSTILE, tokens=tokens, positions=[0]))
    assert page.count("<script") == page.count("</script>") == 2
    answer = answer_in(page)
    assert (answer["tokens"][0]["text"], answer["model"]) == (HOSTILE, HOSTILE)
    assert "attention" not in answer
    assert re.findall(r"^(?:import|export)\b", page, re.MULTILINE) == []


@pytest.fixture(scope="module")
def file(lent_engine: None, dummy_flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    assert cli.main(("inspect", TEXT, *ASKED, "--html", str(folder / "inside.html"), *dummy_flags)) == 0
    return folder / "inside.html"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if MISSING:
        pytest.skip(MISSING)
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, file: Path) -> Iterator[Browser]:
    """The window; the page may ask for nothing but itself, and has broken no policy of its own."""
    window.driver.get("about:blank")
    window.requests()
    window.complaints()
    yield window
    asked = {address for address in window.requests() if not address.startswith(("about:", "data:", "chrome:"))}
    assert asked == {file.as_uri()}
    assert window.complaints() == []


def cells(browser: Browser, selector: str) -> list[list[float]]:
    rows: list[list[float]] = browser.run(
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(row => [...row.querySelectorAll('[data-value]')].map(cell => Number(cell.dataset.value)))",
        f"{selector} tbody tr",
    )
    return rows


def test_what_it_shows_are_the_numbers_and_nothing_that_was_not_asked_for(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri(), language="en")
    answer = answer_in(file.read_text())
    assert answer["attention"]["heads"] == HEADS
    browser.until(lambda: browser.all("#attention-matrix"))
    assert len(browser.all("#tokens .chips li")) == len(answer["tokens"])
    for layer, head in ([2, 3], [2, 0], [0, 1]):
        Select(browser.one("#layer")).select_by_visible_text(str(layer))
        offered = [option.text for option in Select(browser.one("#head")).options]
        assert offered == [str(of) for in_layer, of in HEADS if in_layer == layer]
        Select(browser.one("#head")).select_by_visible_text(str(head))
        assert f"Layer {layer}, head {head}" in browser.one("#attention").text
        weights = answer["attention"]["data"][HEADS.index([layer, head])]
        assert cells(browser, "#attention-matrix") == [row[: query + 1] for query, row in enumerate(weights)]
    assert len(cells(browser, "#lens .heat")) == len(answer["lens"])
    nearest = [[token["cosine"] for token in near] for near in answer["embedding"]["nearest"]]
    told_nearest = [row.split()[-1] for row in browser.texts("#embedding tbody .pair:last-child")]
    assert [float(cosine) for cosine in told_nearest] == pytest.approx([row[-1] for row in nearest], abs=0.01)
    Select(browser.one("#embedded")).select_by_value("2")
    assert browser.numbers("#embedding .dimensions rect") == answer["embedding"]["vectors"]["data"][2]
    (told,) = answer["distributions"]
    shown = [row for row in cells(browser, "#distributions .waterfall") if row]
    assert shown == [candidate["probabilities"] for candidate in told["candidates"]]
    assert "drawn" in browser.one("#distributions tr.marked").text
    added = [row[-1] for row in answer["residual"]["added"]["data"]]
    assert [number for row in cells(browser, "#residual") for number in row] == added


def test_the_further_views_are_shown_too(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri(), language="en")
    answer = answer_in(file.read_text())
    browser.until(lambda: browser.all("#position_encoding"))
    assert len(browser.all("#text .bytes tbody tr")) == len(answer["tokens"])
    assert len(browser.all("[data-spelling]")) == len(answer["spellings"])
    [rotary] = answer["position_encoding"]["rotary"]
    for position in (len(answer["positions"]) - 1, 2):
        Select(browser.one("#encoded")).select_by_value(str(position))
        assert browser.numbers("#position_encoding .dials li") == rotary["angles"]["data"][position]


FEW = [2, 4, 5]
"""Positions that are not the first ones."""


@pytest.fixture(scope="module")
def few(lent_engine: None, dummy_flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of few positions, whose heads are reduced and whose keys are the heaviest alone."""
    folder = tmp_path_factory.mktemp("few")
    asked = ("--positions", "2,4-5", "--attention", "all", "--reduction", "max", "--top-keys", "2", "--lens")
    asked += ("--residual", "--distribution", "--fields", '{"settings": [{"temperature": 1}, {"top_k": 3}]}')
    assert cli.main(("inspect", TEXT, *asked, "--html", str(folder / "few.html"), *dummy_flags)) == 0
    return folder / "few.html"


def test_a_few_positions_are_shown_as_what_they_are(window: Browser, few: Path) -> None:
    window.open(few.as_uri(), language="en")
    answer = answer_in(few.read_text())
    window.until(lambda: window.all("#attention-matrix"))
    assert [option.text.split()[0] for option in Select(window.one("#position")).options] == [str(at) for at in FEW]
    for layer in range(3):
        Select(window.one("#layer")).select_by_visible_text(str(layer))
        assert f"Layer {layer}, its heads as one" in window.one("#attention").text
        assert not window.all("#head")
        known = window.run(
            "return [...document.querySelectorAll('#attention-matrix td[data-at]')]"
            ".map(cell => [...cell.dataset.at.split(',').map(Number), Number(cell.dataset.value)])"
        )
        keys, weights = answer["attention"]["keys"][layer], answer["attention"]["data"][layer]
        told = [[row, key, weights[row][at]] for row in range(len(FEW)) for at, key in enumerate(keys[row])]
        assert sorted(known) == sorted(told)
    assert window.one("#lens .heat thead tr").text.split() == [answer["tokens"][at]["text"] for at in FEW]
    added = [[row[0] for row in answer["residual"]["added"]["data"]]]
    Select(window.one("#position")).select_by_value(str(FEW[0]))
    assert [number for row in cells(window, "#residual") for number in row] == added[0]
    titles = [title.text for title in window.all("#distributions h2")]
    assert ["setting 0" in title for title in titles] == [True, False] * len(FEW)
    assert faults(window) == []


def test_learned_rows_and_slopes_are_shown(window: Browser, tmp_path: Path) -> None:
    """Of models that have these kinds of position encoding."""
    rows, slopes = [[0.5, -1.0, 0.25, 0.0], [2.0, 0.0, -0.5, 0.125]], [0.5, 0.25, 0.125]
    encoding = InspectedEncoding(learned=Numbers(shape=[2, 4], data=rows), alibi_slopes=slopes)
    tokens = [InspectedToken(id=id, text=text, special=False, generated=False) for id, text in enumerate("ab")]
    answer = Inspection(object="inspection", model="toy", tokens=tokens, positions=[0, 1], position_encoding=encoding)
    (tmp_path / "page.html").write_text(page_of(answer))
    window.open((tmp_path / "page.html").as_uri(), language="en", width=375, height=740)
    for position in (1, 0):
        Select(window.one("#encoded")).select_by_value(str(position))
        assert window.numbers(".vector rect") == rows[position]
    assert window.numbers(".bars li") == slopes
    assert "0.1250" in window.one(".bars").text
    assert window.run("return document.documentElement.scrollWidth") <= 375
    assert faults(window) == []


@pytest.mark.parametrize(("width", "dark", "language"), [(375, True, "en"), (1280, False, "ko")])
def test_it_is_for_everybody(browser: Browser, file: Path, width: int, dark: bool, language: str) -> None:
    browser.open(file.as_uri(), width=width, height=740, dark=dark, language=language)
    browser.until(lambda: browser.all("#attention-matrix"))
    assert browser.run("return document.documentElement.lang") == language
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert faults(browser) == []
    browser.open(file.as_uri(), width=width, height=740, language="ko" if language == "en" else "en")
    browser.until(lambda: browser.all("#attention-matrix"))
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_by_keyboard_alone(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri(), language="en")
    browser.until(lambda: browser.all("#attention-matrix"))

    def go_to(selector: str) -> None:
        for _ in range(60):
            if browser.run("return document.activeElement.matches(arguments[0])", selector):
                return
            browser.tab()
        raise AssertionError(f"{selector} is not reached")

    go_to("#layer")
    browser.keys(Keys.ARROW_DOWN)
    browser.until(lambda: "Layer 2, head 3" in browser.one("#attention").text)
    go_to("#head")
    browser.keys(Keys.ARROW_DOWN)
    browser.until(lambda: "Layer 2, head 0" in browser.one("#attention").text)
    assert browser.run("return document.activeElement.id") == "head"
    go_to("#attention-matrix .scroll")
    browser.keys(Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert "%" in browser.one("#attention-matrix .reading").text
    go_to("#attention-matrix tr:first-child .row-name")
    browser.keys(Keys.ENTER)
    assert browser.run("return document.activeElement.matches('#attention-matrix tr:first-child .row-name')")
    go_to("#position")
    browser.keys(Keys.ARROW_UP)
    assert browser.run("return document.activeElement.id") == "position"
    browser.keys(Keys.HOME)
    go_to("#distributions .scroll")
    Select(browser.one("#language")).select_by_visible_text("한국어")
    browser.until(lambda: browser.run("return document.activeElement.id") == "language")
    assert browser.one("#head").get_attribute("value") == str(HEADS.index([2, 0]))
