"""Two ranks on the CPU decide alike and answer as one rank does."""

import json

import pytest
from workload import output_ids

pytestmark = pytest.mark.server

SETTINGS = ("--adakv-keep-ratio", "0.3", "--adakv-config", '{"scorer": "lagkv"}', "--adakv-scorer", "knorm")
OPTIONS = ("--enable-adakv", "--tp", "2", *SETTINGS)
BINDING = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
PICKED = (0, 1, 10, 11)


def test_two_ranks_give_the_tokens_of_one_at_keep_ratio_1(stock_answers, servers, workload):
    server = servers.get(*OPTIONS, environment=BINDING)
    reports = workload.prepare(server, keep_ratio=1.0)
    assert all(report["compressed"] for report in reports)
    answers = workload.ask_all(server, [workload.prompts[i] for i in PICKED])
    assert output_ids(answers) == [stock_answers[0][i]["output_ids"] for i in PICKED]
    assert all(answer["meta_info"]["cached_tokens"] >= 600 for answer in answers)


@pytest.mark.parametrize("wish", [{"min_retained": 0.9}, {"max_bound": 2000.0}], ids=str)
def test_two_ranks_agree_on_what_a_target_takes(servers, workload, wish):
    """Each sees other heads; ranks that differed would hold other slots, which SGLang's checker would notice."""
    server = servers.get(*OPTIONS, environment=BINDING)
    server.call("/flush_cache", {})
    reports = workload.prepare(server, scorer="snapkv", report_bound=True, **wish)
    assert [report["target"] for report in reports] == [wish, wish]
    for report in reports:
        assert report["owned_slots"] == round(report["keep_ratio"] * 600) < 600
        assert report["retained_mass"] >= wish.get("min_retained", 0)
        assert max(report["bound"]) <= wish.get("max_bound", float("inf"))
    answers = workload.ask_all(server, [workload.prompts[i] for i in PICKED], max_new_tokens=8)
    assert all(answer["meta_info"]["cached_tokens"] == 600 for answer in answers)
    pool = server.state()["pool"]
    assert pool["held"] == 0 and pool["protected"] == 0
    assert server.is_alive


def test_two_ranks_have_the_settings_of_the_command_line_beside_those_of_the_environment(servers):
    server = servers.get(*OPTIONS, environment=BINDING)
    said = [line for line in server.log.read_text().splitlines() if "adakv: settings" in line]
    settings = server.state()["settings"]
    assert settings == {
        "keep_ratio": 0.3,
        "scorer": "knorm",
        "allocator": "cross-layer",
        "debug_checks": True,
    }
    assert len(said) == 1 and said[0].endswith(json.dumps(settings))


def test_two_ranks_keep_their_ledgers_alike_at_the_keep_ratio_of_the_command_line(servers, workload):
    """A rank without it would hold other slots."""
    server = servers.get(*OPTIONS, environment=BINDING)
    server.call("/flush_cache", {})
    reports = workload.prepare(server)
    assert {report["scorer"] for report in reports} == {"knorm"}
    assert [report["owned_slots"] for report in reports] == [180, 180]
    answers = workload.ask_all(server, [workload.prompts[i] for i in PICKED], max_new_tokens=8)
    assert all(answer["meta_info"]["cached_tokens"] == 600 for answer in answers)
    pool = server.state()["pool"]
    assert pool["held"] == 0 and pool["protected"] == 0
    assert server.is_alive
