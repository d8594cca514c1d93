"""What is seen inside the model as a file of NumPy's, which needs nothing of ours to be read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inside.arrays import Distribution, Inspection

Arrays = dict[str, NDArray[Any]]


def write_npz(path: Path, seen: Inspection) -> None:
    """Write the arrays to a file of exactly this name. Raises OSError."""
    # Whole or not at all, as far as the encoding goes.
    content = io.BytesIO()
    np.savez_compressed(content, **arrays_of(seen))  # type: ignore[arg-type]  # None is named like its own parameters.
    path.write_bytes(content.getvalue())


def arrays_of(seen: Inspection) -> Arrays:
    """The arrays by name; those of views that were not asked for are missing.

    | name | shape |
    |---|---|
    | tokens, texts, generated | [tokens] |
    | positions | [positions] |
    | heads | [heads, 2]: layer and head; where heads are reduced layers, [layers], instead |
    | attention | [heads or layers, positions, keys] |
    | attention_keys | shape of attention: positions of the heaviest keys, if only those were asked for |
    | residual_stream, residual_added | [2 * layers + 1, positions], [2 * layers, positions] |
    | lens_tokens, lens_texts, lens_logprobs | [layers + 1, positions, top] |
    | lens_next_logprob, lens_next_rank | [layers + 1, positions]; NaN and 0 where no token follows |
    | distribution_0_position, distribution_0_drawn | [] |
    | distribution_0_stages, distribution_0_kept, distribution_0_mass, distribution_0_entropy | [stages] |
    | distribution_0_tokens, distribution_0_texts, distribution_0_noise | [candidates] |
    | distribution_0_probabilities | [candidates, stages] |

    Distributions are numbered. Texts are without NUL characters at their end, which NumPy leaves out.
    """
    arrays: Arrays = {
        "tokens": np.array([token.id for token in seen.tokens], np.int64),
        "texts": np.array([token.text for token in seen.tokens], np.str_),
        "generated": np.array([token.generated for token in seen.tokens], np.bool_),
        "positions": seen.positions,
    }
    if seen.attention is not None:
        if seen.attention.heads is not None:
            arrays["heads"] = np.array(seen.attention.heads, np.int64).reshape(-1, 2)
        if seen.attention.layers is not None:
            arrays["layers"] = np.array(seen.attention.layers, np.int64)
        if seen.attention.keys is not None:
            arrays["attention_keys"] = seen.attention.keys
        arrays["attention"] = seen.attention.weights
    if seen.residual is not None:
        arrays |= {"residual_stream": seen.residual.stream, "residual_added": seen.residual.added}
    if (lens := seen.lens) is not None:
        arrays |= {"lens_tokens": lens.tokens, "lens_texts": lens.texts.astype(np.str_)}
        arrays |= {"lens_logprobs": lens.logprobs, "lens_next_logprob": lens.next_logprob}
        arrays |= {"lens_next_rank": lens.next_rank}
    for index, one in enumerate(seen.distributions or ()):
        arrays |= {f"distribution_{index}_{name}": array for name, array in _of_distribution(one).items()}
    return arrays


def _of_distribution(one: Distribution) -> Arrays:
    return {
        "position": np.array(one.position, np.int64),
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
