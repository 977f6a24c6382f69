"""Requests made from the OpenAPI description, valid ones and wrong ones, alone and in sequences."""

import schemathesis
from fake_service import FakeService
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from adakv_sglang.control import build_router

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(max_examples=50, stateful_step_count=6, suppress_health_check=list(HealthCheck))
service = FakeService()
app = FastAPI()
app.router.routes.extend(build_router(service).routes)
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


def test_the_description_can_be_read_as_a_whole():
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.method for operation in operations} == {"get", "post", "patch", "delete"}
    assert not any(operation.has_skipped_required_body for operation in operations)


@schema.parametrize()
@settings(FEW)
def test_no_request_breaks_a_route_and_every_answer_is_as_described(case):
    case.call_and_validate(checks=CHECKS)


def test_no_sequence_of_requests_breaks_a_route():
    seen = set()

    class Sequence(schema.as_state_machine()):
        def setup(self):
            service.__init__()

        def validate_response(self, response, case, **_):
            seen.add((case.method, response.status_code))
            case.validate_response(response, checks=CHECKS)

    Sequence.run(settings=FEW)
    assert seen >= {("POST", 201), ("POST", 422), ("GET", 200), ("PATCH", 200), ("DELETE", 200)}
