"""The control plane: routes, their bodies, and what they need from the server; no SGLang, no torch."""

from adakv_sglang.control.routes import build_router
from adakv_sglang.control.service import ContextService, ServiceError

__all__ = ["ContextService", "ServiceError", "build_router"]
