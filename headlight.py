"""Headlight as a library: `from headlight import LLM, SamplingParams`."""

from service.offline import LLM, CompletionOutput, RequestError, RequestOutput, SamplingParams

__all__ = ["LLM", "CompletionOutput", "RequestError", "RequestOutput", "SamplingParams"]
