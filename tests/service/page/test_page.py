"""The page in a real browser, before a real server with the real model."""

import asyncio
import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from service.engine.status import STARTING, EngineHealth
from tests.service.api import fakes
from tests.service.page.browser import MISSING, Browser, browsing, faults

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

STEPS = "purpose tokens embedding position attention heads feedforward lens softmax choosing scale".split()
PROMPT = "The teacher gave the student a book because the"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The window; no test may have made a request to another host, or have broken the page's own policy."""
    window.requests()
    window.complaints()
    yield window
    asked = [address for address in window.requests() if not address.startswith(("about:", "data:", "chrome"))]
    hosts = {httpx.URL(address).host for address in asked}
    assert hosts <= {"127.0.0.1"}
    refusals = ("status of 400", "status of 401")  # Of fields that a server may lack, and of a missing key.
    assert [line for line in window.complaints() if not any(words in line for words in refusals)] == []


def choose(browser: Browser, **settings: float) -> None:
    """Fill in sampling settings."""
    for name, value in settings.items():
        field = browser.one(f"#setting-{name}")
        browser.run("arguments[0].closest('details').open = true", field)
        field.clear()
        field.send_keys(str(value))


def ask(browser: Browser, text: str) -> None:
    """Send a message, and wait for the whole answer."""
    browser.one("#message").send_keys(text, Keys.ENTER)
    browser.until(lambda: browser.all(".token"))
    browser.until(lambda: browser.all("#send"))


def test_a_chat_streams_stops_and_is_edited_and_retried(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", language="en")
    choose(browser, temperature=0, max_tokens=1500)
    browser.one("#message").send_keys("Write a long story about a lighthouse keeper and the sea.", Keys.ENTER)
    seen = browser.until(lambda: len(browser.all(".token")))
    browser.until(lambda: len(browser.all(".token")) > seen)
    assert browser.all("#stop"), "the whole answer came at once"
    browser.button("Stop").click()
    browser.until(lambda: browser.all("#send"))
    assert "Stopped by you." in browser.one(".turn.assistant").text

    browser.button("Edit").click()
    field = browser.one("#edited")
    field.clear()
    field.send_keys(QUESTION)
    browser.one(".editing .primary").click()
    browser.until(lambda: browser.all("#send") and browser.all(".token"))
    assert browser.one(".turn.user .text").text == QUESTION
    assert len(browser.all(".turn")) == 2

    browser.button("Another answer").click()
    browser.until(lambda: browser.all("#send") and browser.all(".token"))
    assert len(browser.all(".turn")) == 2
    browser.settled()


def test_the_alternatives_of_a_token_are_those_of_the_api(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", language="en")
    choose(browser, temperature=0, max_tokens=5)
    ask(browser, QUESTION)
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 5}
    answer = httpx.post(
        f"{url}/v1/chat/completions", json=body | {"logprobs": True, "top_logprobs": 10}, timeout=60
    ).json()
    entries = answer["choices"][0]["logprobs"]["content"]
    tokens = browser.all(".token")
    assert len(tokens) == len(entries)
    *shown, _ = browser.run("return [...document.querySelectorAll('.token')].map(token => token.textContent)")
    assert "".join(shown) in answer["choices"][0]["message"]["content"]
    for token, entry in zip(tokens, entries, strict=True):
        token.click()
        shown = browser.numbers(".detail .bars li:not(.rest)")
        expected = [math.exp(top["logprob"]) for top in entry["top_logprobs"]]
        # The numbers of two requests differ by what else ran in their steps.
        assert shown == pytest.approx(expected, abs=1e-3)
        assert sum(browser.numbers(".detail .bars li")) == pytest.approx(1)


def test_a_token_is_pointed_at_and_opened_to_its_stages(browser: Browser, url: str) -> None:
    """The stages, too, are those of the API."""
    drawing = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3, "max_tokens": 4}
    browser.open(f"{url}/#/chat", language="en")
    choose(browser, **drawing, repetition_penalty=1.1)
    ask(browser, QUESTION)
    body = {"messages": [{"role": "user", "content": QUESTION}], **drawing, "repetition_penalty": 1.1}
    asked = body | {"inspect": {"distribution": 10}}
    [choice] = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).raise_for_status().json()["choices"]
    tokens = browser.all(".token")
    assert len(tokens) == len(choice["inspection"])
    for token, seen in zip(tokens, choice["inspection"], strict=True):
        told = seen["distribution"]
        [drawn] = [candidate for candidate in told["candidates"] if candidate["id"] == told["drawn"]]
        ActionChains(browser.driver).move_to_element(token).perform()
        likely = 100 * drawn["probabilities"][0]
        assert float(browser.one(".tip strong").text.strip("%<")) == pytest.approx(likely, abs=0.1)
        token.click()
        rows = browser.run(
            "return [...document.querySelectorAll('.detail .waterfall tbody tr:not(.summary)')]"
            ".map(row => [...row.querySelectorAll('[data-value]')].map(cell => Number(cell.dataset.value)))"
        )
        assert len(rows[0]) == len(told["stages"]) == 6
        for row, candidate in zip(rows, told["candidates"], strict=True):
            assert row == pytest.approx(candidate["probabilities"], abs=1e-3)
        assert "drawn" in browser.one(".detail .waterfall .marked").text
    browser.settled()


def test_settings_that_nobody_touched_draw_with_some_chance(browser: Browser, url: str) -> None:
    """Without chance another answer would be the same, and the stages would have nothing to show."""
    browser.open(f"{url}/#/chat", language="en")
    browser.run("sessionStorage.clear()")
    browser.driver.refresh()
    ask(browser, "Name three fruits.")
    browser.all(".token")[0].click()
    assert browser.texts(".detail .waterfall thead th") == ["Token", "model", "temperature", "top-p"]


def test_a_part_of_a_character_that_is_opened_shows_what_it_and_others_complete(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", language="ko")
    choose(browser, temperature=0, repetition_penalty=1, max_tokens=12)
    ask(browser, "바다에 대해 두 줄 써 줘.")
    ends = browser.run(
        "return [...document.querySelectorAll('.token')]"
        ".findIndex(token => /^[0-9a-f ]+ → [가-힣],/.test(token.ariaLabel))"
    )
    token = browser.all(".token")[ends]
    syllable = token.text
    token.click()
    assert browser.one(".detail h2").text.endswith(f"→ {syllable}")
    others = [name for name in browser.texts(".detail .bars .name") if "→" in name]
    assert len(others) > 1
    assert f"→ {syllable}" in browser.one(".detail .waterfall .marked").text


def test_an_answer_that_may_grow_too_long_for_its_stages_is_still_an_answer(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", language="en")
    choose(browser, temperature=0, max_tokens=4000)
    ask(browser, QUESTION)
    browser.settled()
    browser.all(".token")[0].click()
    assert "lower the max tokens" in browser.one(".detail").text
    browser.one("#setting-max_tokens").clear()
    browser.one("#setting-max_tokens").send_keys("8")
    ask(browser, QUESTION)
    browser.until(lambda: len(browser.all(".turn")) == 4)
    browser.all(".turn:last-child .token")[0].click()
    assert browser.all(".detail .waterfall")


def test_the_cells_of_attention_are_the_numbers_of_the_api(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/attention", language="en")
    for layer, head in ((15, 0), (2, 7)):
        browser.until(lambda: browser.all("#attention-matrix"))
        browser.run(
            "const s = document.getElementById('layer'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
            layer,
        )
        browser.until(lambda layer=layer: f"Layer {layer}," in browser.one("main").text)
        browser.run(
            "const s = document.getElementById('head'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
            head,
        )
        browser.until(lambda layer=layer, head=head: f"Layer {layer}, head {head}" in browser.one("main").text)
        body = {"prompt": PROMPT, "attention": [[layer, head]]}
        weights = httpx.post(f"{url}/v1/inspect", json=body, timeout=60).json()["attention"]["data"][0]
        rows = browser.run(
            "return [...document.querySelectorAll('#attention-matrix tbody tr')]"
            ".map(row => [...row.querySelectorAll('td[data-value]')].map(cell => Number(cell.dataset.value)))"
        )
        assert [len(row) for row in rows] == list(range(1, len(weights) + 1))
        for query, row in enumerate(rows):
            assert row == pytest.approx(weights[query][: query + 1], abs=1e-4)
            assert sum(row) == pytest.approx(1, abs=1e-3)
    # Who does not see the shades hears the shares.
    heard = browser.run("return [...document.querySelectorAll('#attention-matrix td')].map(cell => cell.textContent)")
    assert [text for text in heard if text] == [percent(weight) for row in rows for weight in row]


def percent(share: float) -> str:
    """A share as the page writes it in English."""
    if 0 < share < 0.0001:
        return "<0.01%"
    return f"{100 * share:.{1 if share >= 0.1 else 2}f}%"


def test_the_first_head_that_is_shown_is_one_that_looks_around(browser: Browser, url: str) -> None:
    """Most heads of the middle layer look at the first token alone, which teaches a visitor nothing."""
    browser.open(f"{url}/#/walk/attention", language="en")
    chosen = int(browser.one("#head").get_attribute("value") or "")
    maps = inspected(url, prompt=PROMPT, attention=[[15, head] for head in range(9)])["attention"]["data"]
    idle = [sum(row[0] for row in weights) for weights in maps]
    assert idle[chosen] == pytest.approx(min(idle), abs=1e-2)


def inspected(url: str, **fields: object) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/inspect", json=fields, timeout=60).raise_for_status().json()
    return answer


def test_tokens_are_shown_with_their_bytes_and_in_other_spellings(browser: Browser, url: str) -> None:
    prompt = "The teacher gave 책."
    browser.open(f"{url}/#/walk/tokens", language="en")
    look_at(browser, prompt)
    told = inspected(url, prompt=prompt, details=True, spellings=True)
    cells = browser.texts(".bytes tbody tr > *")
    rows = [cells[start : start + 4] for start in range(0, len(cells), 4)]
    expected = [(token["id"], bytes(token["bytes"]).hex(" "), token["offsets"]) for token in told["tokens"]]
    assert [(int(row[1]), row[2], [int(end) for end in row[3].split("–")]) for row in rows] == expected
    # Half a character has no text, so that its bytes stand for it; the part that ends it shows it.
    assert [row[0] for row in rows] == ["The", "␣teacher", "␣gave", "20 ec", "b1", "85 → 책", "."]
    names = browser.run("return [...document.querySelectorAll('[data-spelling]')].map(card => card.dataset.spelling)")
    assert names == [other["name"] for other in told["spellings"]]
    known = {token["id"] for token in told["tokens"]}
    for other in told["spellings"]:
        card = f"[data-spelling='{other['name']}']"
        ids = [int(found) for found in browser.texts(f"{card} .id")]
        assert ids == [token["id"] for token in other["tokens"]]
        assert [int(found) for found in browser.texts(f"{card} .other .id")] == [id for id in ids if id not in known]


def test_no_token_of_a_korean_text_is_shown_as_a_character_that_it_is_not(browser: Browser, url: str) -> None:
    """Parts of characters stand as their bytes, in the text and among the tokens that may follow."""
    browser.open(f"{url}/#/walk/tokens", language="ko", width=375, height=740)
    look_at(browser, "선생님이 학생에게 책을")
    for step in ("embedding", "attention", "lens", "softmax", "choosing"):
        browser.run("location.hash = arguments[0]", f"#/walk/{step}")
        browser.until(lambda step=step: browser.all(f"[href='#/walk/{step}'][aria-current]"))
        browser.settled()
        assert "\ufffd" not in browser.run("return document.querySelector('main').textContent"), step
        assert browser.run("return document.documentElement.scrollWidth") <= 375, step


def test_a_prompt_may_be_an_example_but_not_be_empty(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/tokens", language="en")
    browser.settled()
    before = browser.texts(".chips")
    browser.one("#prompt").clear()
    browser.one("#prompt").send_keys("  ", Keys.ENTER)
    assert "no text yet" in browser.one("#prompt-said").text
    assert browser.texts(".chips") == before
    browser.button("Code").click()
    browser.until(lambda: "print" not in browser.one(".chips").text and "def" in browser.one(".chips").text)
    assert not browser.one("#prompt-said").text
    assert (browser.one("#prompt").get_attribute("value") or "").startswith("def add")


def look_at(browser: Browser, prompt: str) -> None:
    """Let another text go through the steps."""
    field = browser.one("#prompt")
    field.clear()
    field.send_keys(prompt, Keys.ENTER)
    browser.settled()


def test_the_embeddings_are_those_of_the_api(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/embedding", language="en")
    told = inspected(url, prompt=PROMPT, embedding=6)["embedding"]
    browser.until(lambda: browser.all(".nearest"))
    assert browser.numbers(".nearest td.bar") == pytest.approx(told["norms"]["data"], rel=1e-4)
    pairs = [pair.rsplit(maxsplit=1) for pair in browser.texts(".nearest .pair")]
    near = [token for nearest in told["nearest"] for token in nearest]
    assert [text for text, _ in pairs] == [token["text"].replace(" ", "␣") for token in near]
    assert [float(cosine) for _, cosine in pairs] == pytest.approx([token["cosine"] for token in near], abs=0.006)


def test_the_dimensions_of_the_chosen_token_are_drawn(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/embedding", language="en")
    vectors = inspected(url, prompt=PROMPT, embedding=0, embedding_vectors=True)["embedding"]["vectors"]["data"]
    for position in (8, 3):
        browser.until(lambda: browser.all("#position"))
        Select(browser.one("#position")).select_by_value(str(position))
        expected = pytest.approx(vectors[position], rel=1e-4, abs=1e-6)
        browser.until(lambda expected=expected: browser.numbers(".dimensions rect") == expected)
    assert "The 576 numbers of" in (browser.one(".dimensions").get_attribute("aria-label") or "")
    below = browser.numbers(".dimensions .below")
    assert len(below) == sum(number < 0 for number in vectors[3])
    assert max(below) < 0


def test_the_angles_are_those_that_the_chosen_position_got(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/position", language="en")
    [rotary] = inspected(url, prompt=PROMPT, position_encoding=True)["position_encoding"]["rotary"]
    for position in (8, 3):
        browser.until(lambda: browser.all("#position"))
        browser.run("document.getElementById('position').focus()")
        Select(browser.one("#position")).select_by_value(str(position))
        browser.until(lambda position=position: f"position {position}," in browser.one("main").text)
        assert browser.numbers(".dials li") == pytest.approx(rotary["angles"]["data"][position], abs=1e-4)
        angles = [float(angle.strip("°").replace("−", "-")) for angle in browser.texts(".dials .amount")]
        expected = [math.degrees(angle) for angle in rotary["angles"]["data"][position]]
        assert angles == pytest.approx(expected, abs=0.06)
    turns = [float(note.split()[2].replace(",", "")) for note in browser.texts(".dials .note")]
    assert turns == pytest.approx([2 * math.pi / frequency for frequency in rotary["frequencies"]], rel=0.01)


def test_the_parameters_of_every_step_are_those_of_the_model(browser: Browser, url: str) -> None:
    size = httpx.get(f"{url}/v1/models").json()["data"][0]["size"]
    counts = size["parameters"]
    browser.open(f"{url}/#/walk/purpose", language="en")
    browser.until(lambda: browser.all(".bars"))
    assert browser.numbers(".bars li") == [counts[part] for part in ("embedding", "attention", "feed_forward", "head")]
    assert f"{counts['total']:,}" in browser.one(".facts").text
    assert f"{size['weight_bytes'] / 1e6:.1f} MB" in browser.one(".facts").text
    parts = {"embedding": "embedding", "attention": "attention", "feedforward": "feed_forward", "lens": "head"}
    for step, part in parts.items():
        browser.run("location.hash = arguments[0]", f"#/walk/{step}")
        browser.until(lambda part=part: browser.numbers(".parameters") == [counts[part]])
        assert f"{counts[part]:,}" in browser.one(".parameters").text


LANGUAGES = [("en", "The walk"), ("ko", "둘러보기")]
"""Languages, and the beginning of the title in each."""


def test_every_step_in_each_language(browser: Browser, url: str) -> None:
    """Also light and dark, in turn: the steps have their colours in common."""
    browser.open(f"{url}/#/walk", width=375, height=740, language="en")
    for number, step in enumerate(STEPS, 1):
        browser.colours(dark=number % 2 == 0)
        browser.run("location.hash = arguments[0]", f"#/walk/{step}")
        browser.until(lambda number=number: str(number) in browser.one(".count").text)
        for language, name in LANGUAGES if number % 2 else reversed(LANGUAGES):
            Select(browser.one("#language")).select_by_value(language)
            browser.until(lambda language=language: browser.run("return document.documentElement.lang") == language)
            browser.settled()
            assert browser.driver.title.startswith(name)
            assert browser.run("return document.documentElement.scrollWidth") <= 375, step
            assert browser.one(".step h1").text
        assert faults(browser) == [], step


def test_the_chat_on_a_narrow_screen(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", width=375, height=740, language="ko")
    choose(browser, temperature=0, max_tokens=8)
    ask(browser, QUESTION)
    browser.all(".token")[0].click()
    assert browser.one(".detail").is_displayed()
    assert "뽑힘" in browser.one(".detail .waterfall .marked").text
    below, top = (
        browser.run(f"return document.querySelector('{place}').getBoundingClientRect().{side}")
        for place, side in ((".token[aria-selected=true]", "bottom"), (".detail", "top"))
    )
    assert 0 < below <= top, "the opened token is under what tells of it"
    assert browser.run("return document.documentElement.scrollWidth") <= 375
    assert faults(browser) == []


def test_by_keyboard_alone(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/chat", language="en")
    browser.settled()
    browser.run("document.getElementById('message').focus()")
    browser.keys(QUESTION, Keys.ENTER)
    browser.until(lambda: browser.all(".token") and browser.all("#send"))

    def is_in(selector: str) -> bool:
        found: bool = browser.run("return document.activeElement.matches(arguments[0])", selector)
        return found

    def go_to(selector: str, *, back: bool = False) -> None:
        for _ in range(40):
            if is_in(selector):
                return
            browser.tab(back=back)
        raise AssertionError(f"{selector} is not reached")

    go_to(".tokens", back=True)
    browser.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.one(".tip").is_displayed()
    browser.keys(Keys.ENTER)
    assert is_in(".detail")
    browser.keys(Keys.ESCAPE)
    assert not browser.all(".detail")
    assert is_in(".tokens")

    go_to("nav [href='#/walk']", back=True)
    browser.keys(Keys.ENTER)
    browser.until(lambda: is_in("main"))
    go_to("[href='#/walk/attention']")
    browser.keys(Keys.ENTER)
    browser.until(lambda: is_in("main") and browser.all("#attention-matrix"))
    go_to("#layer")
    browser.keys(Keys.ARROW_UP)
    browser.until(lambda: "Layer 14," in browser.one("main").text)
    browser.until(lambda: is_in("#layer"))
    go_to("#attention-matrix .scroll")
    browser.keys(Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert "%" in browser.one("#attention-matrix .reading").text


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(window: Browser, tmp_path: Path) -> None:
    def visit(url: str) -> None:
        window.open(f"{url}/#/chat", language="en")
        window.run("sessionStorage.clear()")
        window.driver.refresh()
        for key, left in (("wrong", True), ("sesame", False)):
            window.one("dialog #key").send_keys(key, Keys.ENTER)
            window.until(lambda left=left: bool(window.all("dialog .problem")) if left else not window.all("dialog"))
        window.until(lambda: window.one(".model").text == fakes.MODEL)
        window.driver.refresh()
        window.until(lambda: window.one(".model").text == fakes.MODEL)
        assert not window.all("dialog")
        assert window.run("return localStorage.length") == 1  # The language: no key.

    async def serve() -> None:
        async with fakes.serving(api_keys="sesame") as server:
            await asyncio.to_thread(visit, server.url)

    asyncio.run(serve())


def test_an_engine_that_is_gone_is_told(window: Browser) -> None:
    async def serve() -> None:
        async with fakes.serving() as server:
            server.engine.state = type(server.engine.state)("loading", "")
            await asyncio.to_thread(visit, server.url)

    def visit(url: str) -> None:
        window.open(f"{url}/#/walk/attention", language="en")
        assert "not ready" in window.one(".problem").text
        window.button("Try again")

    asyncio.run(serve())


@pytest.mark.parametrize(
    ("part", "language", "words"),
    [("chat", "en", "still being loaded"), ("walk/tokens", "ko", "불러오고 있어요")],
)
def test_a_model_that_is_loading_is_waited_for(window: Browser, part: str, language: str, words: str) -> None:
    """The page asks at most once a second, not while it is hidden, and goes on by itself."""

    async def serve() -> None:
        async with fakes.serving() as server:
            ready, server.engine.state = server.engine.state, STARTING
            await asyncio.to_thread(visit, server, ready)

    def asked() -> list[float]:
        """Milliseconds from question to question, of the answers that have come."""
        times: list[float] = window.run(
            "return performance.getEntriesByType('resource')"
            ".filter(({ name }) => name.endsWith('/health')).map(({ startTime }) => startTime)"
        )
        return times

    def hide(hidden: bool) -> None:
        window.run(
            "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
            "document.dispatchEvent(new Event('visibilitychange'))",
            hidden,
        )

    def visit(server: fakes.Running, ready: EngineHealth) -> None:
        window.open(f"{server.url}/#/{part}", language=language)
        if part == "chat":
            choose(window, max_tokens=5)
            window.one("#message").send_keys(QUESTION, Keys.ENTER)
        window.until(lambda: any(words in text for text in window.texts(".loading")))
        assert not window.all(".problem")
        times = window.until(lambda: len(asked()) >= 3 and asked())
        assert all(later - before >= 1000 for before, later in pairwise(times))
        hide(True)
        # One question may have been on its way.
        time.sleep(1)
        count = len(asked())
        time.sleep(5)
        assert len(asked()) == count
        server.engine.state = ready
        hide(False)
        window.until(lambda: server.engine.streams and not window.all(".loading"))

    asyncio.run(serve())


NEUTRAL = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}


def kept(url: str, **settings: float) -> list[float]:
    """Probabilities above 0 of the last stage among ten candidates, as the API tells them, the largest first."""
    body = {"prompt": PROMPT, "positions": [8], "distribution": 10, "settings": [settings]} | NEUTRAL
    [distribution] = httpx.post(f"{url}/v1/inspect", json=body, timeout=60).raise_for_status().json()["distributions"]
    last = [candidate["probabilities"][-1] for candidate in distribution["candidates"]]
    return sorted((share for share in last if share > 0), reverse=True)


def test_the_ways_of_choosing_are_the_servers_and_follow_a_slider(browser: Browser, url: str) -> None:
    browser.open(f"{url}/#/walk/choosing", language="en")

    def shown(way: str) -> list[float]:
        script = "return [...document.querySelectorAll(arguments[0])].map(bar => Number(bar.dataset.value))"
        shares: list[float] = browser.run(script, f"[data-way={way}] .bars li")
        return sorted((share for share in shares if share > 0), reverse=True)

    browser.until(lambda: len(browser.all(".way")) == 6)
    assert shown("greedy") == [1]
    assert shown("top_k") == pytest.approx(kept(url, temperature=1, top_k=10), abs=1e-3)
    assert shown("min_p") == pytest.approx(kept(url, temperature=1, min_p=0.1), abs=1e-3)
    before = shown("top_k")
    browser.run("document.getElementById('slider-temperature').focus()")
    browser.keys(*[Keys.ARROW_RIGHT] * 4)
    warmer = kept(url, temperature=1.2, top_k=10)
    assert warmer != pytest.approx(before, abs=1e-2)
    browser.until(lambda: shown("top_k") == pytest.approx(warmer, abs=1e-3))
    assert len(browser.all("[data-way] .marked")) == 6
