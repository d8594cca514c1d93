"""GET /v1/models: the one model that is served, under each of its names."""

from fastapi import APIRouter

from service.api.context import Context, Served
from service.api.schemas.answers import ModelCard, ModelList

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
    ready = context.client.health().state == "ready"
    return ModelCard(
        id=name,
        created=context.started,
        max_model_len=context.client.limits.capacity if ready else None,
    )
