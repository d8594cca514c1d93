"""What a configuration asks for is what the runner is made of, or one line says why not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.cpu import target
from model.checkpoint.errors import CheckpointError
from model.contract import INVALID_TOKEN, Chunk, Draw, StepPlan
from model.loading import load
from model.loading.cache import CacheSizeError
from model.loading.load import load_runner
from model.loading.machine import available_memory
from model.loading.memory import DeviceMemoryError
from model.runner_config import RunnerConfig
from tests.dummies import GREEDY, drawing, drawn, drawn_logprobs
from tests.tiny import LLAMA_LIKE, LONGROPE, YARN

CONFIG = {
    **LLAMA_LIKE,
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "head_dim": 16,
}
BLOCK_BYTES = 2 * 3 * 16 * 2 * 16 * 4
PROMPT = Chunk([1, 2, 3], 0, [0], drawing(GREEDY))


@pytest.fixture
def dummy(tmp_path: Path) -> RunnerConfig:
    """A model of which there is a configuration alone."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return RunnerConfig(model=str(tmp_path), device="cpu", load_format="dummy", cache_memory=2**20, max_running=4)


def test_a_configuration_alone_is_enough_for_a_dummy(dummy: RunnerConfig) -> None:
    runner = load_runner(dummy)
    assert (runner.limits.vocab_size, runner.limits.max_context) == (97, 64)
    tokens = drawn(runner.start(StepPlan([PROMPT])).result())
    assert tokens == drawn(load_runner(dummy).start(StepPlan([PROMPT])).result())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_runner(replace(dummy, load_format="auto"))


def test_an_fp8_cache_holds_four_times_as_many_tokens_as_a_float32_one(dummy: RunnerConfig) -> None:
    dummy = replace(dummy, backend="reference")
    plain, fp8 = load_runner(dummy), load_runner(replace(dummy, cache_dtype="fp8"))
    assert plain.limits.num_blocks == 2**20 // BLOCK_BYTES
    assert fp8.limits.num_blocks == 2**20 // (BLOCK_BYTES // 4)
    assert drawn(fp8.start(StepPlan([PROMPT])).result()) == drawn(plain.start(StepPlan([PROMPT])).result())


def test_without_a_size_the_cache_takes_a_share_of_memory_as_far_as_there_is_a_use_for_it(dummy: RunnerConfig) -> None:
    sizeless = replace(dummy, cache_memory=None)
    limits = load_runner(sizeless).limits
    assert limits.num_blocks == 4 * 64 // limits.block_size
    some = 5.5 * BLOCK_BYTES / available_memory()
    assert 0 < load_runner(replace(sizeless, memory_share=some)).limits.num_blocks < 16
    with pytest.raises(CacheSizeError, match="hold no block"):
        load_runner(replace(sizeless, memory_share=1e-12))


@pytest.fixture
def drafted(dummy: RunnerConfig, tmp_path: Path) -> RunnerConfig:
    """The dummy with a draft model of one layer, whose blocks are a third as large."""
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    return replace(dummy, draft_model=str(draft))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_draft_model_guesses_what_a_step_leaves_open(drafted: RunnerConfig, backend: str) -> None:
    itself = replace(drafted, backend=backend, draft_model=drafted.model)
    for config in (itself, replace(drafted, backend=backend)):
        runner = load_runner(config)
        [first] = drawn(runner.start(StepPlan([PROMPT])).result())
        draws = [Draw(GREEDY, [1, 2, 3], [first], index) for index in range(1, 5)]
        asked = Chunk([first, *[INVALID_TOKEN] * 3], 3, [0], draws)
        [result] = runner.start(StepPlan([asked])).result().others
        assert len(result.drafts) == 3
        assert ([*result.drafts] == [*result.tokens[:3]]) == (config is itself)
        # Behind a wrong draft everything is worthless; before it all is as in single steps.
        [alone] = drawn(runner.start(StepPlan([replace(asked, tokens=[first], draws=draws[:1])])).result())
        assert result.tokens[0] == alone


def test_memory_is_divided_among_the_caches_of_both_models(drafted: RunnerConfig) -> None:
    drafted = replace(drafted, backend="reference")
    assert load_runner(drafted).limits.num_blocks == 2**20 // (BLOCK_BYTES + BLOCK_BYTES // 3)
    sizeless = replace(drafted, cache_memory=None)
    some = 5.5 * BLOCK_BYTES / available_memory()
    limits = load_runner(sizeless).limits
    assert limits.num_blocks == 4 * 64 // limits.block_size
    assert load_runner(replace(sizeless, memory_share=some)).limits.num_blocks in (3, 4, 5)
    assert load_runner(replace(drafted, cache_dtype="fp8")).limits.num_blocks > 2**20 // BLOCK_BYTES


def test_a_draft_model_has_room_for_the_models_context(drafted: RunnerConfig) -> None:
    assert drafted.draft_model is not None
    config = {**CONFIG, "max_position_embeddings": 40}
    (Path(drafted.draft_model) / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="64 tokens is beyond the draft model's 40: lower max_context"):
        load_runner(drafted)
    assert load_runner(replace(drafted, max_context=40)).limits.max_context == 40


def test_on_a_cpu_float32_is_for_compiled_kernels_and_the_rest_for_the_reference(
    dummy: RunnerConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for path, chosen in (("portable", "reference"), ("avx2", "cpu")):
        monkeypatch.setattr(target, "dot_path", lambda path=path: path)
        assert load_runner(dummy).info.backend.startswith(chosen)
    assert load_runner(replace(dummy, dtype="bfloat16")).info.backend == "reference"
    assert not caplog.records
    for module in [name for name in sys.modules if name.startswith("kernels.cpu")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "numba", None)
    (tmp_path / "numba.py").write_text("raise ImportError('no Numba for other processes either')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    # A home without kept kernels, which would need no Numba.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_runner(dummy).info.backend == "reference"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Numba" in caplog.text
    with pytest.raises(ValueError, match="Numba"):
        load_runner(replace(dummy, backend="cpu"))


def test_without_numba_the_server_can_be_imported() -> None:
    code = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None; import model.loading.load, service.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_that_are_kept_load_without_a_compiler(dummy: RunnerConfig) -> None:
    code = "import sys\n"
    code += "if sys.argv[1:]: sys.modules['numba'] = None\n"
    code += "from model.loading.load import load_runner, RunnerConfig\n"
    code += (
        f"load_runner(RunnerConfig(model={dummy.model!r}, backend='cpu', load_format='dummy', cache_memory=2**20))\n"
    )
    code += "from kernels.cpu.operations import sample_operation; sample_operation().address"
    for arguments in ([], ["kept"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_kernels_are_compiled_where_nothing_can_be_kept(dummy: RunnerConfig) -> None:
    code = "from model.loading.load import load_runner, RunnerConfig\n"
    code += f"load_runner(RunnerConfig(model={dummy.model!r}, backend='cpu', load_format='dummy', cache_memory=2**20))"
    environment = {**os.environ, "HOME": os.devnull}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "abacus"}, ["abacus", "auto", "cpu", "cuda"]),
        ({"dtype": "int3"}, ["int3", "auto", "bfloat16"]),
        ({"backend": "abacus"}, ["abacus", "reference", "triton"]),
        ({"cache_dtype": "fp4"}, ["fp4", "auto", "fp8"]),
        ({"load_format": "guess"}, ["guess", "auto", "dummy"]),
        ({"max_context": 65}, ["65", "64"]),
        ({"batch_invariant": True, "backend": "reference"}, ["batch invariance", "triton"]),
        ({"cache_memory": 1}, ["1 bytes", "no block"]),
        ({"cache_memory": 10**15}, ["KV cache", "GiB", "free", "cache_memory"]),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(
    dummy: RunnerConfig, change: dict[str, object], words: list[str]
) -> None:
    with pytest.raises((ValueError, CheckpointError)) as caught:
        load_runner(replace(dummy, **change))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_yarn_extends_the_context(dummy: RunnerConfig) -> None:
    (Path(dummy.model) / "config.json").write_text(json.dumps({**CONFIG, "rope_scaling": {**YARN, "factor": 16.0}}))
    assert load_runner(dummy).limits.max_context == 256
    assert load_runner(replace(dummy, max_context=200)).limits.max_context == 200
    with pytest.raises(CheckpointError, match="257 tokens is beyond the model's 256"):
        load_runner(replace(dummy, max_context=257))


def test_longrope_follows_the_context_that_is_served(dummy: RunnerConfig) -> None:
    lists = {"short_factor": [1.0] * 8, "long_factor": [9.0] * 8, "partial_rotary_factor": 1.0}
    scaling = {**LONGROPE, **lists, "original_max_position_embeddings": 32}
    (Path(dummy.model) / "config.json").write_text(json.dumps({**CONFIG, "rope_scaling": scaling}))
    prompt = replace(PROMPT, draws=drawing(replace(GREEDY, logprobs=0)))

    def logprob(max_context: int | None) -> float:
        runner = load_runner(replace(dummy, max_context=max_context))
        (logprobs,) = drawn_logprobs(runner.start(StepPlan([prompt])).result())
        assert logprobs is not None
        return logprobs.chosen

    assert logprob(32) == logprob(8)
    assert logprob(33) == logprob(None)
    assert logprob(32) != logprob(33)


@pytest.mark.parametrize("part", ["load_backend", "read_spec", "dummy_weights", "calibrate", "make_cache"])
def test_memory_that_runs_out_anywhere_is_one_line(
    part: str, dummy: RunnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(load, part, exhausted)
    with pytest.raises(DeviceMemoryError, match=r"did not fit into the .* GiB that were free on cpu"):
        load_runner(replace(dummy, cache_dtype="fp8"))


def test_a_gpu_is_asked_for_and_there_is_none(dummy: RunnerConfig) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="no CUDA device"):
        load_runner(replace(dummy, device="cuda"))
