"""The benchmark's every path, on a CPU and tiny: that it runs, that it isolates failures, that it invents nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import main, measure_all
from benchmarks.attention_case import Shape
from benchmarks.bench import Bench
from benchmarks.chip import Rates
from benchmarks.report import MICROSECONDS, TERAFLOPS, Report, Row, Unit
from benchmarks.timing import Clock

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "decode": 14,
    "prefill": 6,
    "decode, Llama 8B": 4,
    "prefill, Llama 8B": 2,
    "host, Llama 8B": 4,
    "decode, Llama 8B, batch-invariant": 4,
    "prefill, Llama 8B, batch-invariant": 2,
    "elementwise": 15,
    "sampling": 33,
    "matmul": 96,
    "batch-invariant matmul": 24,
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    """The table and the JSON of a run that measures nothing."""
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreter", "benchmarks", "--smoke", "--out", str(folder)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.iterdir()
    return done.stdout, json.loads(file.read_text())


def test_every_section_runs(smoke: tuple[str, dict[str, object]]) -> None:
    rows = smoke[1]["rows"]
    assert isinstance(rows, list)
    sections = [row["section"] for row in rows]
    assert {section: sections.count(section) for section in sections} == SECTIONS
    assert all(row["seconds"] > 0 for row in rows)


def test_peers_stand_beside(smoke: tuple[str, dict[str, object]]) -> None:
    rows = smoke[1]["rows"]
    assert isinstance(rows, list)
    peers = {name for row in rows for name in row["peers"]}
    # What a CPU has none of is said.
    assert peers == {"torch flash", "flex", "torch dense", "transformers"}
    assert any(reason.startswith("torch cudnn: ") for reason in smoke[1]["failures"])  # type: ignore[attr-defined]


def test_a_smoke_run_says_that_it_is_no_measurement(smoke: tuple[str, dict[str, object]]) -> None:
    table, content = smoke
    assert table.startswith("SMOKE")
    assert "NOT A MEASUREMENT" in table
    assert content["smoke"] is True
    rows = content["rows"]
    assert isinstance(rows, list)
    assert {row["reached"] for row in rows} == {None}


@pytest.mark.parametrize("kernel", ["step", "sampling", "decode", "prefill", "matmul"])
def test_every_variant_of_a_kernel_stands_in_a_table(
    kernel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import step
    from benchmarks.variants import DECODE_TABLES, MATMUL_TABLES, PREFILL_TABLES, SMOKE_CASES, tunings

    tables = {"decode": DECODE_TABLES, "prefill": PREFILL_TABLES, "matmul": MATMUL_TABLES}
    expected = {table.section: [*table.variants] for table in tables.get(kernel, ())}
    expected |= {"sampling": {"sampling variants": [name for name, _ in tunings()]}}.get(kernel, {})
    expected |= {"step": {step.SECTION: [*step.WAYS]}}.get(kernel, {})
    assert main(["--smoke", "--variants", "--only", kernel, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())["rows"]
    for section, names in expected.items():
        assert [row["variant"] for row in rows if row["section"] == section] == names * SMOKE_CASES
    lines = capsys.readouterr().out.splitlines()
    heads = [number for number, line in enumerate(lines) if line.split()[:1] == ["variant"]]
    for at, (section, names) in zip(heads, expected.items(), strict=True):
        assert lines[at - SMOKE_CASES - 1] == section
        width = 2 + max(map(len, names))
        table = lines[at + 1 : at + 1 + len(names)]
        assert [line[:width].strip() for line in table] == names
        cells = [[line[width:][10 * case :][:10] for line in table] for case in range(SMOKE_CASES)]
        assert [sum(cell.endswith("*") for cell in column) for column in cells] == [1] * SMOKE_CASES


def test_no_kernel_is_above_its_floor_for_a_slow_copy() -> None:
    """The memory's rate is the higher one of reading alone, and of reading and writing."""
    for rates in (Rates(copy=2e12, read=4e12, matmul=1.0, launch=1.0), Rates(4e12, 2e12, 1.0, 1.0)):
        assert rates.moving(4e12) == 1.0


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert not [*tmp_path.iterdir()]


def half_broken(bench: Bench) -> None:
    bench.report.add(Row("half", "done", MICROSECONDS, 1.0))
    raise RuntimeError("out of sorts")


def sound(bench: Bench) -> None:
    bench.report.add(Row("whole", "done", MICROSECONDS, 1.0))


@pytest.fixture
def two_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import sections

    for name in [*sections.SECTIONS]:
        monkeypatch.delitem(sections.SECTIONS, name)
    monkeypatch.setitem(sections.SECTIONS, "broken", sections.Section(half_broken, 60))
    monkeypatch.setitem(sections.SECTIONS, "sound", sections.Section(sound, 60))


@pytest.mark.usefixtures("two_sections")
def test_a_section_that_fails_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert [word in printed for word in ("half", "whole", "out of sorts")] == [True] * 3


def started_with(path: Path, behaviour: Callable[[str, Report], bool]) -> Callable[[Sequence[str], float], None]:
    """Starts a process that goes through sections as long as `behaviour` lets it live."""

    def start(names: Sequence[str], seconds: float) -> None:
        report = Report.load(path) if path.exists() else Report({}, path, smoke=False)
        for name in names:
            report.mark(name, ended=False)
            if not behaviour(name, report):
                return
            report.mark(name, ended=True)

    return start


def test_a_section_that_ends_its_process_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"

    def measure(name: str, report: Report) -> bool:
        report.add(Row(name, "first", MICROSECONDS, 1.0))
        return name not in ("b", "c")

    assert measure_all("abcd", path, 60, started_with(path, measure)) == 1
    report = Report.load(path)
    assert [row.section for row in report.rows] == ["a", "b", "c", "d"]
    assert [error.split(":")[0] for error in report.errors] == ["section b", "section c"]
    assert "section c: its process ended" in capsys.readouterr().out


def test_processes_that_cannot_begin_are_not_started_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure_all("ab", tmp_path / "report.json", 60, lambda names, seconds: None) == 1
    assert "nothing was measured" in capsys.readouterr().out


def test_sections_that_time_does_not_reach_are_named(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report({}, path, smoke=False).mark("a", ended=True)
    assert measure_all("b", path, -1, started_with(path, lambda name, report: True)) == 1
    assert Report.load(path).errors == ["section b: no time"]


def test_a_report_is_carried_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = Report({"chip": "C"}, path, smoke=False)
    row = Row("s", "c", TERAFLOPS, 1e-3, floor=1e-4, work=5e11, target=400.0)
    report.add(row)
    report.add_peer(row, "other", 2e-3)
    report.fail_peer(row, "third: no")
    report.note("noted")
    report.fail("failed")
    report.mark("s", ended=True)
    again = Report.load(path)
    assert again.table() == report.table()
    assert again.row("s", "c") == row
    assert again.row("s", "d") is None
    assert again.sections == {"s": True}
    assert json.loads(path.read_text())["rows"][0]["reached"] is True


def test_rates_and_durations_are_judged_by_their_own_direction() -> None:
    fast = Row("s", "c", MICROSECONDS, 9e-6, target=10)
    slow = Row("s", "c", MICROSECONDS, 11e-6, target=10)
    many = Row("s", "c", TERAFLOPS, 1e-3, work=5e11, target=400)
    few = Row("s", "c", TERAFLOPS, 1e-3, work=3e11, target=400)
    assert [row.reached for row in (fast, slow, many, few)] == [True, False, True, False]
    assert Row("s", "c", MICROSECONDS, 1.0).reached is None
    assert Unit("GB/s", 1e-9, rate=True).show(2.0, 4e9) == 2.0


def test_a_report_shows_value_floor_and_peers(tmp_path: Path) -> None:
    report = Report({"chip": "C"}, tmp_path / "report.json", smoke=False)
    row = Row("decode", "8 x 4K", MICROSECONDS, 50e-6, floor=40e-6, target=45, peers={"other": 60e-6})
    report.add(row)
    report.fail_peer(row, "third: no")
    table = report.table()
    line = next(line for line in table.splitlines() if "8 x 4K" in line)
    assert line.split() == ["8", "x", "4K", "50", "us", "40", "80.0%", "45", "MISS", "other", "60"]
    assert "third: no (decode 8 x 4K)" in table


@pytest.mark.parametrize(
    ("lengths", "pairs"), [([(1, 1)], 1), ([(5, 1)], 5), ([(4, 4)], 10), ([(4, 2)], 7), ([(5, 1), (4, 2)], 12)]
)
def test_operations_count_the_pairs_that_the_causal_mask_leaves(lengths: list[tuple[int, int]], pairs: int) -> None:
    counted = sum(key <= query for total, new in lengths for query in range(total - new, total) for key in range(total))
    assert counted == pairs
    assert Shape(lengths, heads=3, kv_heads=1, head_dim=8).operations == 2 * 2 * 3 * 8 * pairs


def test_bytes_are_the_cache_once_and_the_queries_twice() -> None:
    shape = Shape([(10, 1), (20, 2)], heads=4, kv_heads=2, head_dim=8)
    assert shape.bytes(2, 1) == 2 * 30 * 2 * 8 * 1 + 2 * 3 * 4 * 8 * 2


def test_the_clock_runs_out() -> None:
    assert Clock(0.0).left() <= 0 < Clock(10.0).left() <= 10
