"""POST /tokenize and /detokenize: what the model reads for a text, and back. Neither needs the engine to be idle."""

from fastapi import APIRouter
from starlette.requests import Request

from service.api.bodies import JsonRoute
from service.api.context import Served
from service.api.errors import REFUSALS
from service.api.requests import detokenized, tokenized
from service.api.schemas import DetokenizeBody, Text, TokenizeBody, Tokens
from service.record import record_of

router = APIRouter(tags=["tokens"], route_class=JsonRoute)


@router.post("/tokenize", responses=REFUSALS, summary="Text or messages to token ids")
async def tokenize(body: TokenizeBody, request: Request, context: Served) -> Tokens:
    """The ids that a completion or chat request would make of the same input."""
    tokens = await tokenized(body, context, record_of(request.scope))
    return Tokens(tokens=tokens, count=len(tokens))


@router.post("/detokenize", responses=REFUSALS, summary="Token ids to text")
async def detokenize(body: DetokenizeBody, request: Request, context: Served) -> Text:
    """The text of token ids, special tokens included."""
    return Text(prompt=await detokenized(body, context, record_of(request.scope)))
