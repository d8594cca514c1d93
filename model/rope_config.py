"""Reads a layer's rotary embedding from a configuration, as transformers 4 wrote it and as transformers 5 does.

It knows the keys of rope_scaling and rope_parameters, and not what the frequencies come to.
"""

import math
from typing import Literal

from model.checkpoint.errors import label
from model.config import Config
from model.spec import LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling

LayerKind = Literal["full_attention", "sliding_attention"]

DEFAULT_THETA = 10000.0


def read_rope(config: Config, kind: LayerKind, head_dim: int) -> RopeSpec:
    """The rotary embedding of layers of `kind`. Raises CheckpointError for a kind of scaling that is not known."""
    parameters = _parameters(config)
    return _rope(parameters.section(kind) or parameters, config, "rope_theta", head_dim)


def read_local_rope(config: Config, head_dim: int) -> RopeSpec:
    """That of sliding layers with a base of their own (Gemma 3), to which the model's scaling does not apply."""
    parameters = _parameters(config).section("sliding_attention") or config.empty()
    return _rope(parameters, config, "rope_local_base_freq", head_dim)


def _parameters(config: Config) -> Config:
    return config.section("rope_parameters") or config.section("rope_scaling") or config.empty()


def _rope(parameters: Config, config: Config, theta_key: str, head_dim: int) -> RopeSpec:
    theta = parameters.number("rope_theta", config.number(theta_key, DEFAULT_THETA))
    if theta <= 1:
        raise parameters.refusal("rope_theta", f"is {theta}, which is not above 1")
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = config.integer("rotary_dim", int(head_dim * share))
    if not 2 <= dim <= head_dim or dim % 2:
        raise parameters.refusal("partial_rotary_factor", f"rotates {dim} of {head_dim} dimensions: not an even part")
    return RopeSpec(theta, dim, _scaling(parameters, config))


def _rope_type(parameters: Config) -> str:
    return parameters.text("rope_type", parameters.text("type", "default"))


def _scaling(parameters: Config, config: Config) -> RopeScaling | None:
    original = config.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    match _rope_type(parameters):
        case "default":
            return None
        case "linear":
            return LinearScaling(parameters.number("factor"))
        case "llama3":
            low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
            if low >= high:
                raise parameters.refusal("low_freq_factor", f"is {low}, which is not below high_freq_factor {high}")
            original = parameters.integer("original_max_position_embeddings", original)
            return Llama3Scaling(parameters.number("factor"), low, high, original)
        case "yarn":
            return _yarn(parameters, parameters.integer("original_max_position_embeddings", original), config)
        case unknown:
            raise parameters.refusal("rope_type", f"is {label(unknown)}, which is not supported")


def _yarn(parameters: Config, original: int, config: Config) -> YarnScaling:
    factor = parameters.number("factor", config.integer("max_position_embeddings") / original)
    return YarnScaling(
        factor,
        original,
        parameters.number("beta_fast", 32.0),
        parameters.number("beta_slow", 1.0),
        _yarn_attention_factor(parameters, factor),
        parameters.flag("truncate", True),
    )


def _yarn_attention_factor(parameters: Config, factor: float) -> float | None:
    """What the file says, or the ratio of DeepSeek's two factors, or None for the paper's."""
    if parameters.get("attention_factor") is not None:
        return parameters.number("attention_factor")
    # A factor of zero counts as none, in transformers as here.
    if not (parameters.get("mscale") and parameters.get("mscale_all_dim")) or factor <= 1:
        return None
    wanted, all_dims = (0.1 * parameters.number(key) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim"))
    return wanted / all_dims
