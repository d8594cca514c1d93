"""GET /v1/models: the one model that is served."""

from fastapi import APIRouter

from service.api.context import Context, Served
from service.api.schemas import ModelCard, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models")
async def list_models(context: Served) -> ModelList:
    """The served model, under the name that requests may give."""
    return ModelList(data=[_card(context)])


@router.get("/v1/models/{name:path}", summary="Look at a model")
async def get_model(name: str, context: Served) -> ModelCard:
    """The served model; 404 for any other name."""
    context.check_model(name)
    return _card(context)


def _card(context: Context) -> ModelCard:
    ready = context.client.health().state == "ready"
    return ModelCard(
        id=context.model_name,
        created=context.started,
        max_model_len=context.client.limits.capacity if ready else None,
    )
