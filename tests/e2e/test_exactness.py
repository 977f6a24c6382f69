"""At keep ratio 1.0 our server answers as the stock server does, token for token."""

import pytest
from workload import output_ids

pytestmark = pytest.mark.server

SERVERS = {
    "default": ("--enable-adakv",),
    "chunked prefill": ("--enable-adakv", "--chunked-prefill-size", "128"),
}


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
def test_keep_ratio_1_reproduces_the_stock_server(stock_answers, servers, workload, options):
    first, second = stock_answers
    server = servers.get(*options)
    reports = workload.prepare(server, keep_ratio=1.0)
    assert all(report["compressed"] and report["freed_slots"] == 0 for report in reports)
    assert all(report["retained_mass"] == pytest.approx(1.0) for report in reports)

    single = [workload.ask(server, prompt) for prompt in workload.prompts]
    assert output_ids(single) == output_ids(first)
    for answer, document in zip(single, [workload.documents[i // 10] for i in range(20)], strict=True):
        assert answer["meta_info"]["cached_tokens"] >= len(document)
        assert answer["meta_info"]["adakv"]["logical_tokens"] == len(document)

    concurrent = workload.ask_all(server, workload.prompts)
    assert output_ids(concurrent) == output_ids(first)

    turns = workload.second_turns(first)
    answers = [workload.ask(server, prompt) for prompt in turns]
    assert output_ids(answers) == output_ids(second)
    for answer, prompt in zip(answers, turns, strict=True):
        assert answer["meta_info"]["cached_tokens"] > len(prompt) - 16  # the first turn was reused, too


def test_documents_that_nobody_prepared_are_served_as_ever(stock_answers, adakv, workload):
    answers = workload.ask_all(adakv, workload.prompts[:4])
    assert output_ids(answers) == output_ids(stock_answers[0][:4])
    assert all("adakv" not in answer["meta_info"] for answer in answers)


def test_requests_with_and_without_contexts_share_batches(stock_answers, adakv, workload):
    adakv.generate([*workload.documents[0], 1], 1, adakv={"compress": True, "keep_ratio": 1.0})
    mixed = workload.prompts[:3] + workload.prompts[10:13]
    answers = workload.ask_all(adakv, mixed)
    assert output_ids(answers) == output_ids(stock_answers[0][:3] + stock_answers[0][10:13])
    assert [("adakv" in answer["meta_info"]) for answer in answers] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("scope", [{"cache_salt": "salt"}, {"extra_key": "tenant"}], ids=str)
def test_other_namespaces_and_partial_matches_get_exact_answers(stock_answers, adakv, workload, scope):
    workload.prepare(adakv, keep_ratio=0.1)
    prompt, expected = workload.prompts[0], stock_answers[0][0]
    answer = adakv.generate(prompt, 32, sampling={"ignore_eos": True}, **scope)
    assert answer["output_ids"] == expected["output_ids"]
    assert answer["meta_info"]["cached_tokens"] == 0 and "adakv" not in answer["meta_info"]


def test_a_prompt_that_shares_all_but_the_last_token_of_a_context_is_exact(adakv, servers, workload):
    prompt = workload.documents[0][:-1] + workload.question("Who is accused?")
    expected = workload.ask(adakv, prompt)
    adakv.call("/flush_cache", {})
    workload.prepare(adakv, keep_ratio=0.1)
    answer = workload.ask(adakv, prompt)
    assert answer["output_ids"] == expected["output_ids"]
    assert answer["meta_info"]["cached_tokens"] == 0
