"""The page at /adakv/: one HTML file, sent with a policy that lets nothing run but what stands in it."""

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

__all__ = ["Page", "page_router", "read_page"]

INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
# Trusted types: no string becomes HTML or code, whatever the server's texts hold.
POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """The page's bytes, their strong entity tag, and the Content-Security-Policy made for exactly these bytes."""

    body: bytes
    tag: str
    policy: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every answer: caches ask before they reuse it, so that an upgrade shows at once."""
        return {
            "Cache-Control": "no-cache",
            "ETag": self.tag,
            "Content-Security-Policy": self.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }


@functools.cache
def read_page() -> Page:
    """The page as installed; read once."""
    body = resources.files("adakv_sglang.control").joinpath("page", "index.html").read_bytes()
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(body):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        hashes[kind.decode()].append(f"'sha256-{digest}'")
    policy = POLICY.format(**{kind: " ".join(found) for kind, found in hashes.items()})
    return Page(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', policy)


def page_router() -> APIRouter:
    """`/` answers with the page, the empty path redirects there; both are to stand under /adakv."""
    router = APIRouter()

    @router.get(
        "/",
        summary="The page",
        response_class=HTMLResponse,
        responses={304: {"description": "The page that the client has, by If-None-Match, is this one."}},
    )
    async def show_page(request: Request) -> Response:
        """Pool, figures and contexts for a browser; it reads the other routes."""
        page = read_page()
        known = {
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        }
        if known & {page.tag, "*"}:
            return Response(status_code=304, headers=page.headers)
        return HTMLResponse(page.body, headers=page.headers)

    @router.get("", include_in_schema=False)
    async def redirect_to_page() -> Response:
        """Relative, so that it also holds behind a proxy that puts a path in front."""
        return RedirectResponse("adakv/", status_code=308)

    return router
