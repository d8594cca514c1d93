"""The inside of the model as a file of NumPy's, which needs nothing of ours to be read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inspection.arrays import Attention, Distribution, Inspection, PositionEncoding

Arrays = dict[str, NDArray[Any]]


def write_npz(path: Path, inspection: Inspection) -> None:
    """Write the arrays to a file of exactly this name. Raises OSError."""
    # Whole or not at all, as far as the encoding goes. No array has the name of a parameter, which mypy cannot know.
    content = io.BytesIO()
    np.savez_compressed(content, **arrays_of(inspection))  # type: ignore[arg-type]
    path.write_bytes(content.getvalue())


def arrays_of(inspection: Inspection) -> Arrays:
    """The arrays by name; those of views that were not asked for are missing.

    | name | shape |
    |---|---|
    | tokens, texts, generated | [tokens] |
    | offsets, bytes, byte_counts | [tokens, 2], [bytes of all tokens], [tokens]; with details |
    | spelling_0_name, spelling_0_text, spelling_0_tokens | [], [], [tokens of that spelling] |
    | positions | [positions] |
    | heads or layers | [heads, 2]: layer and head; [layers] where heads are reduced |
    | attention, keys | [heads or layers, positions, keys]; keys with top_keys alone |
    | residual_stream, residual_added | [2 * layers + 1, positions], [2 * layers, positions] |
    | embedding_norms | [positions] |
    | embedding_vectors | [positions, hidden], with embedding_vectors |
    | embedding_tokens, embedding_texts, embedding_cosines | [positions, top] |
    | rotary_0_layers, rotary_0_frequencies, rotary_0_angles | [layers], [pairs], [positions, pairs] |
    | rotary_0_magnitude | [] |
    | learned_positions | [positions, hidden] |
    | alibi_slopes | [heads] |
    | lens_tokens, lens_texts, lens_logprobs | [layers + 1, positions, top] |
    | lens_next_logprob, lens_next_rank | [layers + 1, positions]; NaN and 0 where no token follows |
    | distribution_0_position, distribution_0_setting, distribution_0_drawn | []; setting -1 is the request's own |
    | distribution_0_stages, distribution_0_kept, distribution_0_mass, distribution_0_entropy | [stages] |
    | distribution_0_tokens, distribution_0_texts, distribution_0_noise | [candidates] |
    | distribution_0_probabilities | [candidates, stages] |

    Spellings, distributions and rotations are numbered. Texts are without NUL characters at their end, which NumPy
    leaves out.
    """
    arrays: Arrays = {
        "tokens": np.array([token.id for token in inspection.tokens], np.int64),
        "texts": np.array([token.text for token in inspection.tokens], np.str_),
        "generated": np.array([token.generated for token in inspection.tokens], np.bool_),
        "positions": inspection.positions,
    }
    if inspection.text is not None:
        arrays |= _of_details(inspection)
    for index, spelling in enumerate(inspection.spellings or ()):
        arrays[f"spelling_{index}_name"] = np.array(spelling.name, np.str_)
        arrays[f"spelling_{index}_text"] = np.array(spelling.text, np.str_)
        arrays[f"spelling_{index}_tokens"] = np.array([token.id for token in spelling.tokens], np.int64)
    if inspection.attention is not None:
        arrays |= _of_attention(inspection.attention)
    if inspection.residual is not None:
        arrays |= {"residual_stream": inspection.residual.stream, "residual_added": inspection.residual.added}
    if (embedding := inspection.embedding) is not None:
        arrays |= {"embedding_norms": embedding.norms, "embedding_tokens": embedding.tokens}
        if embedding.vectors is not None:
            arrays["embedding_vectors"] = embedding.vectors
        arrays |= {"embedding_texts": embedding.texts.astype(np.str_), "embedding_cosines": embedding.cosines}
    if inspection.position_encoding is not None:
        arrays |= _of_encoding(inspection.position_encoding)
    if (lens := inspection.lens) is not None:
        arrays |= {"lens_tokens": lens.tokens, "lens_texts": lens.texts.astype(np.str_)}
        arrays |= {"lens_logprobs": lens.logprobs, "lens_next_logprob": lens.next_logprob}
        arrays |= {"lens_next_rank": lens.next_rank}
    for index, one in enumerate(inspection.distributions or ()):
        arrays |= {f"distribution_{index}_{name}": array for name, array in _of_distribution(one).items()}
    return arrays


def _of_details(inspection: Inspection) -> Arrays:
    parts = [bytes(token.bytes or []) for token in inspection.tokens]
    return {
        "offsets": np.array([token.offsets for token in inspection.tokens], np.int64).reshape(-1, 2),
        "bytes": np.frombuffer(b"".join(parts), np.uint8),
        "byte_counts": np.array([len(part) for part in parts], np.int64),
    }


def _of_attention(attention: Attention) -> Arrays:
    arrays: Arrays = {"attention": attention.weights}
    if attention.heads is not None:
        arrays["heads"] = np.array(attention.heads, np.int64).reshape(-1, 2)
    if attention.layers is not None:
        arrays["layers"] = np.array(attention.layers, np.int64)
    if attention.keys is not None:
        arrays["keys"] = attention.keys
    return arrays


def _of_encoding(encoding: PositionEncoding) -> Arrays:
    arrays: Arrays = {}
    for index, rotation in enumerate(encoding.rotary or ()):
        arrays[f"rotary_{index}_layers"] = np.array(rotation.layers, np.int64)
        arrays[f"rotary_{index}_magnitude"] = np.array(rotation.magnitude, np.float64)
        arrays[f"rotary_{index}_frequencies"] = rotation.frequencies
        arrays[f"rotary_{index}_angles"] = rotation.angles
    if encoding.learned is not None:
        arrays["learned_positions"] = encoding.learned
    if encoding.alibi_slopes is not None:
        arrays["alibi_slopes"] = encoding.alibi_slopes
    return arrays


def _of_distribution(one: Distribution) -> Arrays:
    return {
        "position": np.array(one.position, np.int64),
        "setting": np.array(-1 if one.setting is None else one.setting, np.int64),
        "drawn": np.array(one.drawn, np.int64),
        "stages": np.array(one.stages, np.str_),
        "kept": one.kept,
        "mass": one.mass,
        "entropy": one.entropy,
        "tokens": one.tokens,
        "texts": one.texts.astype(np.str_),
        "probabilities": one.probabilities,
        "noise": one.noise,
    }
