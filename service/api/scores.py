"""POST /v1/score and /v1/rerank: how well texts fit each other, in the forms of vLLM, Jina and Cohere.

Nothing but the answers' form is here; `judgements` knows how a model is asked.
"""

import time
from collections.abc import Sequence
from contextlib import aclosing
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import json_of, observed, open_generations
from service.api.bodies import EngineRoute
from service.api.context import Context, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.judgements import Pairs, pairs_to_score, scores_of
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.requests import judgement_job
from service.api.schemas.answers import EmbeddingUsage, Ranked, RankedDocument, Ranking, Score, Scores
from service.api.schemas.judgements import JudgementBody, RerankBody, ScoreBody
from service.api.sse import ClientLeft, while_connected
from service.generation import GenerationRequest, Piece
from service.observability.record import RequestRecord

router = APIRouter(tags=["scores"], route_class=EngineRoute)


@router.post("/score", include_in_schema=False)
@router.post("/v1/score", response_model=Scores, responses=REFUSALS, summary="Score pairs of texts")
async def score(body: ScoreBody, request: Request, context: Served) -> Response:
    """The probability that the model answers yes, and not no, when asked whether a document fits a query."""
    judged = await _judge(body, pairs_to_score(body), request, context, prefix="score")
    if judged is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    id, scores, usage = judged
    data = [Score(index=index, object="score", score=number) for index, number in enumerate(scores)]
    answer = Scores(id=id, object="list", created=int(time.time()), model=context.model_name, data=data, usage=usage)
    return _written(answer)


@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
@router.post("/v1/rerank", response_model=Ranking, responses=REFUSALS, summary="Order documents by a query")
async def rerank(body: RerankBody, request: Request, context: Served) -> Response:
    """The documents by their scores, the best first; of equal ones the earlier."""
    documents = [each if isinstance(each, str) else each.text for each in body.documents]
    pairs = Pairs([(body.query, each) for each in documents], "query", "documents")
    judged = await _judge(body, pairs, request, context, prefix="rerank")
    if judged is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    id, scores, usage = judged
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    texts = {"document": True} if body.return_documents else {}
    results = [
        Ranked(
            index=index,
            relevance_score=scores[index],
            **{name: RankedDocument(text=documents[index]) for name in texts},
        )
        for index in order
    ]
    return _written(Ranking(id=id, model=context.model_name, results=results, usage=usage))


async def _judge(
    body: JudgementBody, pairs: Pairs, request: Request, context: Context, *, prefix: str
) -> tuple[str, list[float], EmbeddingUsage] | None:
    """The answer's id, the score of each pair and the usage; None if the client has left. Raises ApiError."""
    envelope = envelope_of(request, context.settings)
    draws = await judgement_job(body, pairs, context, envelope)
    envelope.record.id, envelope.record.n = f"{prefix}-{uuid4().hex}", len(draws)
    try:
        pieces = await while_connected(request.receive, _draw(context, draws, envelope.record))
    except ClientLeft:
        return None
    tokens = sum(len(draw.sent.prompt) for draw in draws[::2])
    scores = scores_of(pieces, use_activation=body.use_activation)
    return envelope.record.id, scores, EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)


async def _draw(context: Context, draws: Sequence[GenerationRequest], record: RequestRecord) -> list[Piece]:
    """The one token of each."""
    drawn: dict[int, Piece] = {}
    with open_generations(context, draws, record) as generations:
        async with aclosing(observed(record, generations)) as pieces:
            async for index, piece in pieces:
                drawn[index] = piece
    return [drawn[index] for index in range(len(draws))]


def _written(answer: BaseModel) -> Response:
    return Response(json_of(answer), media_type="application/json")
