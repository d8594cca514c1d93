"""GET /v1/models: the one model that is served, under each of its names."""

from fastapi import APIRouter

from model.limits import ModelLimits
from service.api.context import Context, Served
from service.api.schemas.answers import CardSize, ModelCard, ModelList, ParameterCounts

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models")
async def list_models(context: Served) -> ModelList:
    """The served model, under every name that requests may give; answers show the first."""
    return ModelList(data=[_card(name, context) for name in context.model_names])


@router.get("/v1/models/{name:path}", summary="Look at a model")
async def get_model(name: str, context: Served) -> ModelCard:
    """The served model; 404 for any other name."""
    context.check_model(name)
    return _card(name, context)


def _card(name: str, context: Context) -> ModelCard:
    limits = context.client.limits if context.client.health().state == "ready" else None
    return ModelCard(
        id=name,
        created=context.started,
        max_model_len=context.max_model_len,
        size=None if limits is None else _size(limits),
    )


def _size(limits: ModelLimits) -> CardSize:
    size = limits.size
    return CardSize(
        vocab_size=limits.vocab_size,
        hidden_size=size.hidden_size,
        layers=limits.layers,
        heads=limits.heads,
        kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        mlp_size=size.mlp_size,
        parameters=ParameterCounts(
            embedding=size.embedding,
            attention=size.attention,
            feed_forward=size.feed_forward,
            head=size.head,
            total=size.parameters,
        ),
        weight_bytes=size.weight_bytes,
    )
