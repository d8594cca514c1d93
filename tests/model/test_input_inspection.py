"""What goes into the first layer, as it is shown: embeddings and positions equal those of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from kernels.load import load_backend
from model import embedding_table
from model.contract import Wanted
from model.embedding_table import EmbeddingTable
from model.inspection import Embedded, InspectionRequest, PositionEncoding
from model.sampling_params import SamplingParams
from tests.model.test_extras import GREEDY, PROMPT, Engine, Found, to_numpy
from tests.tiny import CPU, TINY_MODELS, VOCAB, random_tokens

COMPANY = (random_tokens(9, seed=1), SamplingParams(max_tokens=8), Wanted())


def inputs(found: Found) -> tuple[list[Embedded], list[PositionEncoding]]:
    embedded = [inspection.embedding for inspection in found.inspections if inspection.embedding is not None]
    return embedded, [inspection.encoding for inspection in found.inspections if inspection.encoding is not None]


def check_embeddings(embedded: Sequence[Embedded], table: torch.Tensor, tokens: Sequence[int], atol: float) -> None:
    norms = np.concatenate([to_numpy(part.norms) for part in embedded])
    np.testing.assert_allclose(norms, table[tokens].norm(dim=-1).numpy(), rtol=1e-3 if atol > 1e-5 else 1e-5)
    cosines = torch.nn.functional.cosine_similarity(table[tokens][:, None], table[None], dim=-1)
    nearest = [near for part in embedded for near in part.nearest]
    for token, near, row in zip(tokens, nearest, cosines, strict=True):
        others = row.clone()
        others[token] = -2
        assert [cosine for _, cosine in near] == pytest.approx(others.topk(4).values.tolist(), abs=atol)
        assert row[[id for id, _ in near]].tolist() == pytest.approx([cosine for _, cosine in near], abs=atol)
        assert token not in [id for id, _ in near]


@pytest.mark.parametrize("family", TINY_MODELS)
def test_inputs_of_a_prompt_in_chunks_and_of_drawn_tokens(family: str, tmp_path: Path) -> None:
    engine = Engine(family, tmp_path, token_budget=8)
    params = SamplingParams(max_tokens=3, temperature=0)
    wanted = Wanted(
        inspect=InspectionRequest(
            positions=range(len(PROMPT)), generated=True, embedding=4, vectors=True, encoding=True
        )
    )
    found, _ = engine.run((PROMPT, params, wanted), COMPANY)
    text = [*PROMPT, *found.tokens[:-1]]
    assert found.positions() == [*range(len(text))]
    embedded, encodings = inputs(found)
    table = engine.model.get_input_embeddings().weight.detach()
    check_embeddings(embedded, table, text, 1e-5)
    vectors = [to_numpy(part.vectors) for part in embedded if part.vectors is not None]
    np.testing.assert_allclose(np.concatenate(vectors), table[text].numpy(), atol=1e-6)
    check_positions(engine.model, encodings, len(text))


@torch.inference_mode()
def check_positions(model: Any, encodings: Sequence[PositionEncoding], count: int) -> None:
    base = getattr(model, "model", None) or model.transformer
    base = getattr(base, "language_model", base)
    positions = torch.arange(count)[None]
    rotary = getattr(base, "rotary_emb", None)
    assert len(encodings[0].rotary) == (0 if rotary is None else len({*layer_types(base)}))
    for parts in zip(*(one.rotary for one in encodings), strict=True):
        angles = np.concatenate([to_numpy(part.angles) for part in parts])
        assert np.abs(angles).max() <= np.pi + 1e-6
        names = {layer_types(base)[layer] for layer in parts[0].layers}
        assert len(names) == 1
        hidden = torch.zeros(1, count, 8)
        cos, sin = rotary(hidden, positions, *names) if names != {None} else rotary(hidden, positions)
        pairs = angles.shape[1]
        np.testing.assert_allclose(np.cos(angles) * parts[0].magnitude, cos[0, :, :pairs].numpy(), atol=1e-4)
        np.testing.assert_allclose(np.sin(angles) * parts[0].magnitude, sin[0, :, :pairs].numpy(), atol=1e-4)
        frequencies = to_numpy(parts[0].frequencies)
        np.testing.assert_allclose(angles[1], np.remainder(frequencies + np.pi, 2 * np.pi) - np.pi, atol=1e-6)
    learned = getattr(base, "wpe", None)
    rows = [to_numpy(part.learned) for part in encodings if part.learned is not None]
    if learned is None:
        assert not rows
    else:
        np.testing.assert_array_equal(np.concatenate(rows), learned.weight[:count].numpy())
    slopes = encodings[0].slopes
    assert (slopes is None) == (model.config.model_type != "bloom")
    if slopes is not None:
        mask = torch.ones(1, 2)
        alibi = build_alibi_tensor(mask, model.config.n_head, torch.float32)
        np.testing.assert_allclose(to_numpy(slopes), alibi[:, 0, 1].numpy(), rtol=1e-6)


def layer_types(base: Any) -> list[str | None]:
    """The kind of each layer that has rotary angles of its own; None for all where they are the same."""
    types = getattr(base.config, "layer_types", None)
    if "gemma" not in base.config.model_type:
        return [None] * base.config.num_hidden_layers
    assert types is not None
    return [*types]


def test_a_packed_table_shows_what_it_holds(tmp_path: Path) -> None:
    """The compiled backend reads a tied embedding from its packed output projection."""
    engine = Engine("llama-tied", tmp_path, token_budget=8, backend=load_backend(CPU, "cpu"))
    assert not isinstance(engine.decoder.weights.embedding, torch.Tensor)
    (found,) = engine.run(
        (PROMPT, GREEDY, Wanted(inspect=InspectionRequest(positions=range(len(PROMPT)), embedding=4)))
    )
    check_embeddings(inputs(found)[0], engine.model.get_input_embeddings().weight.detach(), PROMPT, 1e-4)


def test_inputs_cost_the_forward_pass_nothing(tmp_path: Path) -> None:
    """It is replayed as for everybody else, because it needs no probe."""
    assert not InspectionRequest(positions=[1], embedding=1, encoding=True).needs_probe
    engine = Engine("llama", tmp_path, token_budget=8)
    (found,) = engine.run((PROMPT, GREEDY, Wanted(inspect=InspectionRequest(positions=[3], encoding=True))))
    embedded, encodings = inputs(found)
    assert embedded == []
    assert to_numpy(encodings[0].rotary[0].angles).shape == (1, 8)
    assert found.inspections[0].stream is None


def test_a_row_of_zeros_is_near_nothing_and_there_are_no_more_tokens_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    weights = engine.decoder.weights
    assert isinstance(weights.embedding, torch.Tensor)
    with torch.inference_mode():
        weights.embedding[5] = 0
        tokens = torch.tensor([5, 6, 7])
        found = []
        for size in (embedding_table.SLICE_BYTES, 3000):
            monkeypatch.setattr(embedding_table, "SLICE_BYTES", size)
            table = EmbeddingTable(weights, VOCAB, engine.decoder.backend)
            found.append(table.nearest(tokens, 200))
    cosines, ids = found[0]
    assert cosines.shape == ids.shape == (3, VOCAB - 1)
    assert cosines[0].abs().max() == 0
    torch.testing.assert_close(found[0][0], found[1][0])
