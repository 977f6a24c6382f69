"""A small application around the routes, with a service in memory behind them."""

import pytest
from fake_service import FakeService
from fastapi import FastAPI
from fastapi.testclient import TestClient

from adakv_sglang.control import build_router


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def app(service):
    """Routes are added as the integration adds them: flat."""
    app = FastAPI()
    app.router.routes.extend(build_router(service).routes)
    return app


@pytest.fixture
def client(app):
    return TestClient(app)
