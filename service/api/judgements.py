"""Judgements: how well a document fits a query, by the logits of a prompt's next token being yes or no.

The prompt is that of Qwen3-Reranker, through the model's own chat template, so that any chat model judges.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.api.context import JobContext
from service.api.errors import refusal
from service.api.lengths import Room
from service.api.prompts import encode_messages
from service.api.schemas.chat import Message
from service.api.schemas.judgements import JudgementBody, ScoreBody
from service.api.schemas.tokens import TokenizeBody
from service.generation import Piece

Pair = tuple[str, str]
"""A query and a document."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a request, and the names of the fields that it sent their texts in."""

    texts: Sequence[Pair]
    queries: str
    documents: str

    def longest_field(self, body: JudgementBody, texts: Sequence[Pair]) -> str:
        """The field of a request that fills most of the prompts of some of its pairs."""
        sizes = {
            self.documents: sum(len(document) for _, document in texts),
            self.queries: sum(len(query) for query, _ in texts),
        }
        for name in ("template", "system", "instruction"):
            if name in body.model_fields_set:
                sizes[name] = len(texts) * len(getattr(body, name))
        return max(sizes, key=sizes.__getitem__)


_PLACE = re.compile(r"\{(instruction|query|document)\}")


def pairs_to_score(body: ScoreBody) -> Pairs:
    """The pairs of a request: one text with each of several, or equally many with each other. Raises ApiError."""
    name, queries = _only(body, "queries", "text_1")
    documents_name, documents = _only(body, "documents", "text_2")
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise refusal(name, f"are {len(queries)} for {len(documents)} documents: one is needed, or as many")
    return Pairs([*zip(queries, documents, strict=True)], name, documents_name)


def _only(body: ScoreBody, name: str, older: str) -> tuple[str, list[str]]:
    """The name that was sent of a field that has two, and its texts."""
    given = [(each, getattr(body, each)) for each in (name, older) if getattr(body, each) is not None]
    if len(given) != 1:
        raise refusal(name, f"or {older} is needed, and not both")
    [(sent, texts)] = given
    return sent, [texts] if isinstance(texts, str) else texts


async def judgement_prompt(body: JudgementBody, pair: Pair, context: JobContext, room: Room) -> list[int]:
    """The prompt whose next token says whether a pair fits. Raises ApiError."""
    places = {"instruction": body.instruction, "query": pair[0], "document": pair[1]}
    # In one go, so that a text which looks like a place stays as it is.
    text = _PLACE.sub(lambda place: places[place[1]], body.template)
    messages = [Message(role="system", content=body.system)] if body.system else []
    messages.append(Message(role="user", content=text))
    variables = {"enable_thinking": False}
    asked = TokenizeBody.model_validate({"chat_template_kwargs": variables}, context=context.settings)
    return await encode_messages(asked, messages, context, room, add_special_tokens=False)


def check_question(body: JudgementBody, pairs: Pairs, most: int) -> None:
    """Refuse a template that does not hold a query and a document once, and prompts of more than `most` characters.

    Every prompt repeats the template, and a query may be repeated for every document. Raises ApiError.
    """
    for name, least in (("instruction", 0), ("query", 1), ("document", 1)):
        if not least <= body.template.count(f"{{{name}}}") <= 1:
            raise refusal("template", f"should have {{{name}}} once")
    told = sum(map(len, (body.system, body.template, body.instruction)))
    characters = sum(told + len(query) + len(document) for query, document in pairs.texts)
    if characters > most:
        name = pairs.longest_field(body, pairs.texts)
        raise refusal(name, f"makes prompts of {characters} characters in all, more than the {most} allowed here")


def answer_tokens(body: JudgementBody, context: JobContext) -> tuple[int, int]:
    """The tokens of yes and no. Raises ApiError unless each is one that the model can draw."""
    found = []
    for name in ("yes", "no"):
        tokens = context.tokenizer.encode(getattr(body, name), add_special_tokens=False, parse_special=True)
        if len(tokens) != 1 or tokens[0] >= context.client.limits.vocab_size:
            raise refusal(name, f"is {len(tokens)} tokens of this model, and should be one that it can draw")
        found += tokens
    if found[0] == found[1]:
        raise refusal("no", "is the same token as yes")
    return found[0], found[1]


def scores_of(first_pieces: Sequence[Piece], *, use_activation: bool) -> list[float]:
    """The score of each pair, from the drawn yes and no of all pairs in turn."""
    logprobs = [0.0 if piece.logprobs is None else piece.logprobs.chosen for piece in first_pieces]
    # The normaliser is the same for both, so that the difference of log-probabilities is that of the logits.
    differences = [yes - no for yes, no in zip(logprobs[::2], logprobs[1::2], strict=True)]
    return [_sigmoid(difference) for difference in differences] if use_activation else differences


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
