"""The bodies of requests to score texts and to rank documents."""

from typing import Annotated

from pydantic import ConfigDict, Field, Tag

from service.api.schemas.body import Body, Labels
from service.api.schemas.idle import ELSEWHERE
from service.api.schemas.types import Integer, at_most, choose

TextList = Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_prompts", "texts")]
Texts = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextList, Tag("<list>")], choose("a string or a list of strings")
]


class JudgementBody(Labels):
    """Fields of requests that let the model judge whether texts fit: how it is asked, and its two answers."""

    elsewhere = ELSEWHERE

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    instruction: str = Field(
        "Given a web search query, retrieve relevant passages that answer the query",
        description="What makes a document fit a query.",
    )
    system: str = Field(
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".',
        description="The system message; with an empty one there is none.",
    )
    template: str = Field(
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
        description="The user's message, with {query} and {document}, and {instruction} if it is to be told.",
    )
    yes: Annotated[str, Field(min_length=1, max_length=64)] = Field("yes", description="The word for a fit, a token.")
    no: Annotated[str, Field(min_length=1, max_length=64)] = Field("no", description="The word for none, a token.")
    use_activation: bool = Field(
        True,
        description="Answer with the probability of yes beside no; otherwise with the difference of their logits.",
    )
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )


class ScoreBody(JudgementBody):
    """A request to score pairs of texts: one with each of several, or equally many with each other."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": "capital of France", "documents": ["Paris is the capital.", "Bread is baked."]},
                {"text_1": "capital of France", "text_2": "Paris is the capital of France."},
            ]
        }
    )

    text_1: Texts | None = Field(None, description="The queries, under their older name.")
    text_2: Texts | None = Field(None, description="The documents, under their older name.")
    queries: Texts | None = Field(None, description="One query, or as many as documents.")
    documents: Texts | None = Field(None, description="The documents.")


class Document(Body):
    """A document to rank, as an object."""

    text: str


class RerankBody(JudgementBody):
    """A request to order documents by how well they fit a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "capital of France",
                    "documents": ["Bread is baked.", "Paris is the capital of France."],
                    "top_n": 1,
                }
            ]
        }
    )

    query: str
    documents: Annotated[
        list[
            Annotated[
                Annotated[str, Tag("<text>")] | Annotated[Document, Tag("<object>")],
                choose("a string or an object with a text"),
            ]
        ],
        Field(min_length=1, fail_fast=True),
        at_most("max_prompts", "documents"),
    ]
    top_n: Integer | None = Field(None, ge=0, description="Return this many of the best; all by default, and for 0.")
    return_documents: bool = Field(True, description="Return each document's text beside its score.")
