"""Headlight as a library: `from headlight import LLM, SamplingParams`."""

from service.inspection.arrays import DrawnInspection, Inspection
from service.offline import LLM, CompletionOutput, RequestError, RequestOutput, SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "DrawnInspection",
    "Inspection",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
]
