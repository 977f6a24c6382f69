"""A stub server, and the command called as a shell calls it."""

import pytest
from stub_server import StubServer

from adakv_sglang.cli import main


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """What the user's environment says does not count."""
    for name in ("ADAKV_URL", "ADAKV_API_KEY", "SGLANG_PLUGINS", "ADAKV_SGLANG_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stub():
    """An empty stub server."""
    with StubServer() as server:
        yield server


@pytest.fixture
def adakv(capfd):
    """Runs the command: exit status, stdout, stderr."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run


@pytest.fixture
def contexts(adakv, stub):
    """Runs `adakv contexts ...` against the stub server."""
    return lambda action, *arguments: adakv("contexts", action, "--url", stub.url, *arguments)
