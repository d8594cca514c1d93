import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.dataset import BLOCK_TOKENS, Dataset, DatasetError, load_dataset

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]


def dataset(folder: Path, *lines: dict[str, Any]) -> Dataset:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    load_dataset.cache_clear()
    return load_dataset(path)


def asked(data: Dataset, count: int, name: str = "0", run: str = "a") -> list[tuple[list[dict[str, str]], int]]:
    user = data.user(0, run, name, None)
    return [user.ask() for _ in range(count)]


def test_texts_and_lengths_are_sent_in_their_order(tmp_path: Path) -> None:
    lines = {"messages": HELLO, "output_length": 7}, {"prompt": "Hi"}, {"input_length": 30, "output_length": 2}
    got = asked(dataset(tmp_path, *lines), 4)
    assert got[0] == got[3] == (HELLO, 7)
    assert got[1][0] == [{"role": "user", "content": "Hi"}]
    assert got[1][1] > 0
    assert len(got[2][0][0]["content"].split()) == 30


def test_the_name_of_a_request_in_an_open_loop_is_its_number(tmp_path: Path) -> None:
    data = dataset(tmp_path, *({"prompt": text} for text in "abc"))
    assert [asked(data, 1, str(number))[0][0][0]["content"] for number in range(4)] == [*"abca"]


def test_blocks_are_the_same_in_every_prompt_that_has_them(tmp_path: Path) -> None:
    lines = ({"input_length": 2 * BLOCK_TOKENS + 9, "hash_ids": ids} for ids in ([1, 2], [1, 3]))
    data = dataset(tmp_path, *lines)
    first, second = [prompt for ((message,), _) in asked(data, 2) for prompt in [message["content"].split()]]
    assert len(first) == len(second) == 2 * BLOCK_TOKENS + 9
    assert first[:BLOCK_TOKENS] == second[:BLOCK_TOKENS]
    assert first[BLOCK_TOKENS : 2 * BLOCK_TOKENS] != second[BLOCK_TOKENS : 2 * BLOCK_TOKENS]
    assert asked(data, 1, run="b")[0][0][0]["content"].split()[:BLOCK_TOKENS] != first[:BLOCK_TOKENS]


def test_times_are_milliseconds(tmp_path: Path) -> None:
    assert dataset(tmp_path, {"prompt": "a", "timestamp": 0}, {"prompt": "b", "timestamp": 1500}).times == [0, 1.5]
    assert dataset(tmp_path, {"prompt": "a"}).times is None


def test_scaling_multiplies_lengths_and_leaves_texts(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"input_length": 100, "output_length": 10}, {"prompt": "a b"}).scaled(0.1)
    (long, output), (text, _) = asked(data, 2)
    assert (len(long[0]["content"].split()), output, text[0]["content"]) == (10, 1, "a b")
    assert data.means[0] == 6


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([{"prompt": "a", "id": 1}], "line 1: there is no field 'id'"),
        ([{"prompt": "a"}, {}], "line 2: should have exactly one of"),
        ([{"prompt": "a", "messages": HELLO}], "exactly one of"),
        ([{"prompt": ""}], "prompt should be a text"),
        ([{"messages": []}], "messages should be a list"),
        ([{"messages": [{"role": "user"}]}], "messages should be a list"),
        ([{"input_length": 0}], "input_length should be a number of at least 1"),
        ([{"prompt": "a", "output_length": True}], "output_length should be a number"),
        ([{"prompt": "a", "hash_ids": [1]}], "hash_ids need input_length"),
        ([{"input_length": 5, "hash_ids": "1"}], "hash_ids should be"),
        ([{"prompt": "a", "timestamp": 5}, {"prompt": "a"}], "either every line has a timestamp"),
        ([{"prompt": "a", "timestamp": 5}, {"prompt": "a", "timestamp": 4}], "in rising order"),
        (["a"], "line 1: should be an object"),
        ([], "no request in it"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[Any], word: str) -> None:
    with pytest.raises(DatasetError, match=word) as caught:
        dataset(tmp_path, *lines)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        load_dataset(tmp_path / "none.jsonl")
    (tmp_path / "text.jsonl").write_text("hello")
    with pytest.raises(DatasetError, match="line 1: no JSON"):
        load_dataset(tmp_path / "text.jsonl")
