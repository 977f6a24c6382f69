"""The routes under /adakv, for any application and any service behind them."""

import re
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from adakv_sglang.control.bodies import described, read_body
from adakv_sglang.control.failures import ControlRoute, failures
from adakv_sglang.control.models import (
    MAX_INTEGER,
    ContextDetails,
    ContextInfo,
    ContextPage,
    PinOrder,
    PrepareOrder,
    Stats,
)
from adakv_sglang.control.pages import page_router
from adakv_sglang.control.service import ContextService, ServiceError

__all__ = ["build_router"]

NEXT: Final = {  # what can be done with an id that was answered, for those that read the OpenAPI description
    name: {"operationId": f"adakv_{name}_context", "parameters": {"context_id": "$response.body#/id"}}
    for name in ("show", "pin", "drop")
}
ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
BODY_ERRORS: Final = (400, 413, 415, 422)

State = Literal["queued", "scoring", "ready", "evicted", "failed", ""]
ContextId = Annotated[str, Path(description="The context's id, as in answers.")]


def build_router(service: ContextService) -> APIRouter:
    """All routes, the page included, answered by `service`.

    The list of routes is flat, each with its whole path and an endpoint of its own: a host that looks for marks
    on the endpoints of `app.routes` sees them after `app.router.routes.extend(router.routes)`, but not behind
    `include_router`, which recent versions of FastAPI keep as one opaque entry.
    """
    router = APIRouter(prefix="/adakv", tags=["adakv"], route_class=ControlRoute)
    _add_contexts(router, service)
    _add_context(router, service)
    _add_stats(router, service)
    _add_pages(router)
    return router


def _add_contexts(router: APIRouter, service: ContextService) -> None:
    @router.post(
        "/contexts",
        summary="Prepare a context",
        operation_id="adakv_prepare_context",
        status_code=201,
        response_model=ContextDetails,
        responses={
            200: {"model": ContextDetails, "description": "It was there already.", "links": NEXT},
            201: {"description": "It is made.", "links": NEXT},
            202: {"model": ContextInfo, "description": "It is queued: `wait` is false.", "links": NEXT},
            **failures(*BODY_ERRORS, 409, 503),
        },
        openapi_extra=described(PrepareOrder),
    )
    async def prepare_context(request: Request) -> Response:
        """Compress a prefix once; every later request that starts with it uses what was kept."""
        order = await read_body(request, PrepareOrder)
        prepared = await service.prepare(order, request.is_disconnected)
        if not prepared.done:
            return _answer(ContextInfo, prepared.info, 202)
        return _answer(ContextDetails, prepared.info, 201 if prepared.made else 200)

    @router.get(
        "/contexts",
        summary="List contexts",
        operation_id="adakv_list_contexts",
        response_model=ContextPage,
        responses=failures(422, 503),
    )
    async def list_contexts(
        offset: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Contexts to skip.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="Most contexts to answer.")] = 100,
        state: Annotated[
            State | None, Query(description="Only contexts in this state; empty: in any.")
        ] = None,
    ) -> Response:
        """Live contexts and the last ones that are gone or failed, newest first."""
        return _answer(ContextPage, await service.list(offset, limit, state or None))


def _add_context(router: APIRouter, service: ContextService) -> None:
    path = "/contexts/{context_id}"

    @router.get(
        path,
        summary="Show a context",
        operation_id="adakv_show_context",
        response_model=ContextDetails,
        responses=failures(404, 422, 503),
    )
    async def show_context(context_id: ContextId) -> Response:
        """A context with what was measured per layer and head."""
        return _answer(ContextDetails, await service.get(_checked(context_id)))

    @router.patch(
        path,
        summary="Pin or unpin a context",
        operation_id="adakv_pin_context",
        response_model=ContextInfo,
        responses=failures(*BODY_ERRORS, 404, 409, 503),
        openapi_extra=described(PinOrder),
    )
    async def pin_context(context_id: ContextId, request: Request) -> Response:
        """A pinned context stays when the pool runs full."""
        order = await read_body(request, PinOrder)
        return _answer(ContextInfo, await service.pin(_checked(context_id), order.pinned))

    @router.delete(
        path,
        summary="Drop a context",
        operation_id="adakv_drop_context",
        response_model=ContextInfo,
        responses=failures(404, 409, 422, 503),
    )
    async def drop_context(context_id: ContextId) -> Response:
        """New requests no longer find it; its slots are free when the last request that uses it is done."""
        return _answer(ContextInfo, await service.drop(_checked(context_id)))


def _add_stats(router: APIRouter, service: ContextService) -> None:
    @router.get(
        "/stats",
        summary="Pool, counts and settings",
        operation_id="adakv_stats",
        response_model=Stats,
        responses=failures(503),
    )
    async def show_stats() -> Response:
        """What contexts have saved and done since the server started, and the settings in force."""
        return _answer(Stats, await service.stats())


def _add_pages(router: APIRouter) -> None:
    for page in page_router().routes:
        if isinstance(page, APIRoute):
            router.add_api_route(
                page.path,
                page.endpoint,
                methods=list(page.methods or ()),
                summary=page.summary,
                response_class=page.response_class,
                responses=page.responses,
                include_in_schema=page.include_in_schema,
            )


def _checked(context_id: str) -> str:
    if not ID.fullmatch(context_id):
        raise ServiceError(
            404,
            f"context_id: expected the id of a context, got {context_id[:80]!r}; GET /adakv/contexts has them",
        )
    return context_id


def _answer(shape: type[BaseModel], body: BaseModel, status: int = 200) -> Response:
    """The fields of `shape`, whatever more the service has said; NaN and infinity are null."""
    text = body.model_dump_json(include=set(shape.model_fields))
    return Response(text, status, media_type="application/json")
