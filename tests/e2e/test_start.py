"""Starting a real server with options that cannot be served."""

import local_server
import pytest

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--enable-adakv", "--page-size", "16", "--disable-radix-cache"),
            "- --page-size: expected 1, got 16 (heads are addressed per token)",
        ),
        (
            ("--attention-backend", "adakv"),
            "- --radix-cache-backend: expected 'adakv', got None",
        ),
        (
            ("--adakv-keep-ratio", "0.3"),
            "--adakv-keep-ratio: expected --enable-adakv beside it; add it, or drop what needs it",
        ),
    ],
)
def test_unsupported_options_stop_the_start_with_a_line_each(model, tmp_path, options, line):
    server = local_server.start(model, tmp_path / "log", *options)
    try:
        with pytest.raises(local_server.ServerFailed) as failure:
            server.wait_ready(300)
        assert line in str(failure.value)
    finally:
        server.stop()
