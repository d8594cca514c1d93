"""POST /tokenize and /detokenize: a text's token ids, and back; GET /tokenizer_info. None waits for the engine."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.bodies import JsonRoute
from service.api.context import Context, Served
from service.api.errors import REFUSALS
from service.api.prompts import off_loop, places_of
from service.api.requests import detokenized, tokenized
from service.api.schemas.answers import Text, TokenizerInfo, Tokens
from service.api.schemas.tokens import DetokenizeBody, TokenizeBody
from service.observability.record import record_of

router = APIRouter(tags=["tokens"], route_class=JsonRoute)


@router.post("/tokenize", response_model=Tokens, responses=REFUSALS, summary="Text or messages to token ids")
async def tokenize(body: TokenizeBody, request: Request, context: Served) -> Response:
    """The ids that a completion or chat request would make of the same input."""
    tokens = await tokenized(body, context, record_of(request.scope))
    answer = Tokens(tokens=tokens, count=len(tokens), max_model_len=context.max_model_len)
    if body.return_offsets:
        answer.offsets = await places_of(tokens, body, context)
    return await _written(context, answer, len(tokens))


@router.post("/detokenize", response_model=Text, responses=REFUSALS, summary="Token ids to text")
async def detokenize(body: DetokenizeBody, request: Request, context: Served) -> Response:
    """The text of token ids, special tokens included."""
    text = await detokenized(body, context, record_of(request.scope))
    return await _written(context, Text(prompt=text), len(text))


@router.get("/tokenizer_info", summary="Look at the tokenizer")
async def tokenizer_info(context: Served) -> TokenizerInfo:
    """The tokenizer's special tokens and its chat template, as vLLM tells them."""
    tokenizer = context.tokenizer
    return TokenizerInfo(
        **tokenizer.named_tokens,
        tokenizer_class=tokenizer.tokenizer_class,
        additional_special_tokens=sorted(tokenizer.special_texts),
        chat_template=tokenizer.chat_template,
        model_max_length=context.max_model_len,
        vocab_size=tokenizer.vocab_size,
    )


async def _written(context: Context, answer: BaseModel, size: int) -> Response:
    """The response with `answer`, of about `size` tokens or characters; a large one is written in a thread."""
    text = await off_loop(context, size, lambda: answer.model_dump_json(exclude_unset=True))
    return Response(text, media_type="application/json")
