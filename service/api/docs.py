"""GET /docs: the API's description for people, in Swagger UI.

The files of Swagger UI come with a package; none is fetched from another host.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse

from service.api.context import Served
from service.api.errors import ApiError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(str(files("fastapi_offline"))) / "static"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"


@router.get("/docs")
async def docs(context: Served) -> HTMLResponse:
    """The documentation page."""
    root = context.settings.root_path or ""
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Headlight",
        swagger_js_url=f"{root}/docs/{SCRIPT}",
        swagger_css_url=f"{root}/docs/{STYLE}",
        swagger_favicon_url=f"{root}/docs/{ICON}",
        # By default Swagger UI sends the description's address to a validator of its makers.
        swagger_ui_parameters={"validatorUrl": None},
    )


@router.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """A file of the documentation page."""
    if name not in (SCRIPT, STYLE, ICON):
        raise ApiError(404, "There is no such route.")
    return FileResponse(_FOLDER / name)
