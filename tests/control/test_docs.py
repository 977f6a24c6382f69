"""docs/api.md names every route, field and error that there is."""

from pathlib import Path

import pytest

from adakv_sglang.control import models
from adakv_sglang.control.failures import TYPES

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "model", ["PrepareOrder", "PinOrder", "ContextDetails", "ContextPage", "Pool", "ContextCounts", "Stats"]
)
def test_every_field_is_described(model):
    assert not [name for name in getattr(models, model).model_fields if f"`{name}`" not in TEXT]


def test_every_error_is_described():
    assert not [code for code, (kind, _) in TYPES.items() if f"| {code} | `{kind}` |" not in TEXT]


def test_every_route_has_an_example(app):
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            named = f"{method.upper()} {path.replace('context_id', 'id')}"
            assert f"`{named}`" in TEXT
    assert TEXT.count("```bash\ncurl ") == 7
