"""POST /v1/embeddings: texts, or token ids, as vectors."""

import base64
from collections.abc import Sequence
from contextlib import aclosing
from uuid import uuid4

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import observed, open_generations
from service.api.arrays import to_numpy
from service.api.bodies import EngineRoute
from service.api.context import Context, JobContext, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS, refusal
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.requests import embedding_job
from service.api.schemas.answers import Embedding, Embeddings, EmbeddingUsage
from service.api.schemas.embeddings import EmbeddingBody
from service.api.sse import ClientLeft, while_connected
from service.generation import Generation, GenerationError, GenerationRequest
from service.observability.record import RequestRecord

router = APIRouter(tags=["embeddings"], route_class=EngineRoute)


@router.post("/v1/embeddings", response_model=Embeddings, responses=REFUSALS, summary="Embed texts")
async def create_embeddings(body: EmbeddingBody, request: Request, context: Served) -> Response:
    """Pools the hidden rows of each input, beside whatever else is generated."""
    envelope = envelope_of(request, context.settings)
    inputs = await embedding_job(body, context, envelope)
    envelope.record.id, envelope.record.n = f"embd-{uuid4().hex}", len(inputs)
    try:
        generations = await while_connected(request.receive, _embed(context, inputs, envelope.record))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = embeddings_of(generations, body, context)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _embed(context: Context, inputs: Sequence[GenerationRequest], record: RequestRecord) -> Sequence[Generation]:
    with open_generations(context, inputs, record) as generations:
        async with aclosing(observed(record, generations)) as pieces:
            async for _ in pieces:
                pass
        return generations


def embeddings_of(generations: Sequence[Generation], body: EmbeddingBody, context: JobContext) -> Embeddings:
    """The answer, once all inputs have been read. Raises ApiError, and GenerationError if a number is not finite."""
    vectors = [_finished(_pooled(generation), body) for generation in generations]
    tokens = sum(len(generation.request.sent.prompt) for generation in generations)
    return Embeddings(
        object="list",
        model=context.model_name,
        data=[
            Embedding(object="embedding", index=index, embedding=_written(vector, body))
            for index, vector in enumerate(vectors)
        ],
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _pooled(generation: Generation) -> NDArray[np.float32]:
    """The whole embedding [hidden], from its parts. Raises GenerationError if it is not finite."""
    total: NDArray[np.float32] = np.sum([to_numpy(part) for part in generation.pooled], axis=0)
    if not np.isfinite(total).all():
        raise GenerationError("the model produced no finite numbers")
    count = len(generation.request.sent.prompt) if generation.request.sent.wanted.pooling == "mean" else 1
    return total / np.float32(count)


def _finished(vector: NDArray[np.float32], body: EmbeddingBody) -> NDArray[np.float32]:
    """An embedding cut to the wanted dimensions and scaled. Raises ApiError."""
    if body.dimensions is not None and body.dimensions > len(vector):
        raise refusal("dimensions", f"{body.dimensions} are more than the model's {len(vector)}")
    vector = vector[: body.dimensions]
    length = np.linalg.norm(vector)
    return vector / length if body.normalize and length > 0 else vector


def _written(vector: NDArray[np.float32], body: EmbeddingBody) -> list[float] | str:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
