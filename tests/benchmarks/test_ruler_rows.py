"""Every task of RULER, made from small stand-ins: lengths, needles, answers, and the split of a prompt."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruler.fitting import TooShort, largest_fit
from ruler.generate import Rows, shard
from ruler.prompts import Encoder
from ruler.rows import Text
from ruler.sources import MissingSource, Sources
from ruler.tasks import TASKS
from ruler.tasks.haystack import essay_sentences, hide

LENGTH = 1400
MODEL = Path(os.environ.get("ADAKV_TEST_MODEL") or "~/.cache/adakv-sglang/smollm2-135m-instruct").expanduser()
COARSEST = 80  # tokens of the largest piece of haystack: a document


def samples(tokenizer, data, *tasks, count=2, length=LENGTH, seed=0):
    return list(Rows(tasks, count, length, seed, data).samples(tokenizer))


def row_of(tokenizer, data, task, **options):
    return samples(tokenizer, data, task, count=1, **options)[0].row


def test_all_thirteen_tasks_are_there():
    assert len(TASKS) == 13 and all(name == task.name for name, task in TASKS.items())
    assert {task.max_new_tokens for task in TASKS.values()} == {128, 30, 120, 50, 32}


@pytest.mark.parametrize("name", TASKS)
def test_prompt_and_answer_just_fit_into_the_length(tokenizer, data, name):
    for sample in samples(tokenizer, data, name):
        total = len(sample.prompt) + sample.row.max_new_tokens
        assert LENGTH - COARSEST < total <= LENGTH
        assert sample.row.max_new_tokens == TASKS[name].max_new_tokens


@pytest.mark.parametrize("name", TASKS)
def test_rows_depend_on_seed_and_index_and_on_nothing_else(tokenizer, data, name):
    first = [sample.row for sample in samples(tokenizer, data, name)]
    again = [sample.row for sample in samples(type(tokenizer)(), data, *TASKS) if sample.row.task == name]
    assert first == again and first[0] != first[1]
    assert row_of(tokenizer, data, name, seed=1) != first[0]


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_in_the_context_and_not_in_the_question(tokenizer, data, name):
    row = row_of(tokenizer, data, name)
    asked = row.question + row.answer_prefix
    assert all(answer in row.context and answer not in asked for answer in row.answers)
    assert row.question.endswith(" ") and len(set(row.answers)) == len(row.answers)
    assert TASKS[name].metric(f"It is {', '.join(row.answers)}.", row.answers) == 100


NEEDLE = re.compile(r"One of the special magic (\w+)s for (\S+) is: (\S+)\.")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.mark.parametrize(
    ("name", "needles", "keys", "answers"),
    [
        ("niah_single_1", 1, 1, 1),
        ("niah_single_2", 1, 1, 1),
        ("niah_single_3", 1, 1, 1),
        ("niah_multikey_1", 4, 4, 1),
        ("niah_multikey_2", None, None, 1),
        ("niah_multikey_3", None, None, 1),
        ("niah_multivalue", 4, 1, 4),
        ("niah_multiquery", 4, 4, 4),
    ],
)
def test_needles_hold_the_answers_to_the_keys_asked_for(tokenizer, data, name, needles, keys, answers):
    row = row_of(tokenizer, data, name)
    found = NEEDLE.findall(row.context)
    asked = {key for _, key, _ in found if key in row.question}
    assert {value for _, key, value in found if key in asked} == set(row.answers)
    assert len(row.answers) == answers and len(asked) == (4 if name == "niah_multiquery" else 1)
    if needles is not None:
        assert len(found) == needles and len({key for _, key, _ in found}) == keys
    else:
        haystack = row.context.splitlines()[1:]
        assert len(found) == len(haystack) > 50
    is_uuid = [bool(UUID.fullmatch(value)) for _, _, value in found]
    assert all(is_uuid) if name in ("niah_single_3", "niah_multikey_3") else not any(is_uuid)


def test_several_needles_are_asked_for_in_the_plural(tokenizer, data):
    one, many = (row_of(tokenizer, data, name) for name in ("niah_multikey_1", "niah_multivalue"))
    assert one.context.startswith("A special magic number is hidden within") and "What is the" in one.question
    assert many.context.startswith("Some special magic numbers are") and "What are all the" in many.question
    assert one.answer_prefix.endswith(" is") and many.answer_prefix.endswith(" are")


def test_variables_form_one_chain_after_a_solved_example(tokenizer, data):
    row = row_of(tokenizer, data, "vt")
    example, own = row.context.split("\n\nMemorize")
    value = re.search(r"the value (\d{5})", row.question).group(1)
    for text, start, names in ((own, value, row.answers), (example, None, example.split()[-5:])):
        found = re.findall(r"^VAR (\w+) = (?:VAR (\w+) |(\d+))$", text, re.MULTILINE)
        assert [name for name, _, _ in found] == list(names)
        assert [source for _, source, _ in found] == ["", *names[:-1]]
        assert start is None or found[0][2] == start
    assert 400 < len(example.split()) <= 500
    assert row.answer_prefix.endswith(f"5 variables are assigned the value {value}, they are: ")


@pytest.mark.parametrize(("length", "common", "others"), [(LENGTH, 6, 1), (4400, 30, 3)])
def test_common_words_are_the_most_common(tokenizer, data, length, common, others):
    row = row_of(tokenizer, data, "cwe", length=length)
    _, example, own = row.context.split("Below is a numbered list of words.")
    counts = Counter(re.findall(r"\d+\. (\w+)", own))
    assert set(row.answers) == {word for word, count in counts.items() if count == common}
    assert len(row.answers) == 10 and set(counts.values()) == {common, others}
    solved = re.findall(r"\d+\. (\w+)", example.partition("the list are:")[2])
    shown = Counter(re.findall(r"\d+\. (\w+)", example.partition("the list are:")[0]))
    assert {word for word, _ in shown.most_common(10)} == set(solved)


def test_long_lists_of_words_need_more_than_wonderwords_has(tokenizer, data):
    with pytest.raises(MissingSource, match="english_words.json"):
        row_of(tokenizer, data, "cwe", length=20000)
    (data / "english_words.json").write_text(json.dumps({str(n): f"word-{n}" for n in range(9000)}))
    assert all(answer.startswith("word-") for answer in row_of(tokenizer, data, "cwe", length=20000).answers)


def test_frequent_words_are_the_next_after_the_dots(tokenizer, data):
    row = row_of(tokenizer, data, "fwe")
    words = row.context.partition("most frequently appeared coded words. ")[2].split()
    ranked = Counter(words).most_common()
    assert ranked[0][0] == "..." and tuple(word for word, _ in ranked[1:4]) == row.answers
    assert ranked[3][1] > ranked[4][1]


@pytest.mark.parametrize(("name", "own"), [("qa_1", 1), ("qa_2", 2)])
def test_questions_come_with_their_documents_among_others(tokenizer, data, name, own):
    row = row_of(tokenizer, data, name)
    assert re.findall(r"^Document (\d+):$", row.context, re.MULTILINE) == [
        str(number) for number in range(1, row.context.count("Document ") + 1)
    ]
    assert row.context.count("Document ") > own
    number = re.search(r"\d+", row.question).group()
    assert f"Person{number}" in row.context or all(f"Title{number}{part}" in row.context for part in (0, 1))


def test_both_published_forms_of_hotpot_are_read(data):
    (file,) = data.glob("hotpot*")
    columns, rows = Sources(data).hotpot, json.loads(file.read_text())
    for row in rows:
        row["context"] = list(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
    file.write_text(json.dumps(rows))
    assert Sources(data).hotpot == columns and len(columns.documents) == 6


def test_what_is_missing_is_named(tokenizer, data, monkeypatch):
    with pytest.raises(MissingSource, match="'squad' in its name, got 0"):
        samples(tokenizer, None, "qa_1")
    with pytest.raises(MissingSource, match="at least 7 questions, got 6"):
        samples(tokenizer, data, "qa_1", count=7)
    with pytest.raises(TooShort, match="vt, row 0: expected at least"):
        samples(tokenizer, data, "vt", length=500)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingSource, match="pip install wonderwords"):
        samples(tokenizer, data, "cwe")


def test_without_a_folder_the_essays_are_the_texts_of_the_examples(tokenizer, wonderwords):
    assert "Constitution" in row_of(tokenizer, None, "niah_single_2", length=9000).context


def test_shards_are_disjoint_and_together_everything(tokenizer, data):
    everything = samples(tokenizer, data, "niah_single_1", "fwe", count=3)
    parts = [shard(everything, f"{number}/4") for number in range(4)]
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, everything))
    with pytest.raises(ValueError, match="0 <= i < n"):
        shard(everything, "4/4")


def test_essays_are_cut_after_sentences_and_repeated(data):
    sentences = essay_sentences(Sources(data), 600)
    assert sentences[:2] == ['Sentence 0 says "nothing at all."', 'Sentence 1 says "nothing at all."']
    assert len(" ".join(sentences).split()) == 600


def test_hidden_sentences_keep_their_order():
    assert hide(["a", "b", "c", "d"], ["x", "y", "z"], [0, 0.5, 1]) == ["x", "a", "b", "y", "c", "d", "z"]


@given(st.floats(0.6, 40), st.integers(0, 60), st.integers(0, 30), st.integers(100, 5000), st.randoms())
def test_the_largest_fit_fits_and_one_more_does_not(slope, start, smallest, limit, source):
    noise = [source.random() for _ in range(64)]

    def tokens_at(size):  # grows with every step, unevenly
        return start + int(slope * (size + 0.9 * noise[size % 64]))

    if tokens_at(smallest) > limit:
        with pytest.raises(TooShort):
            largest_fit(tokens_at, smallest, limit)
        return
    size = largest_fit(tokens_at, smallest, limit)
    assert size >= smallest and tokens_at(size) <= limit < tokens_at(size + 1)


@pytest.fixture(scope="module")
def real_tokenizer():
    from transformers import AutoTokenizer

    assert (MODEL / "ready").is_file(), f"{MODEL}: expected the small model; run `make setup`"
    return AutoTokenizer.from_pretrained(MODEL)


def test_a_prompt_is_split_as_kvpress_splits_it(real_tokenizer):
    from kvpress import KVPressTextGenerationPipeline

    text = Text("Some context.\n", "What is it? ", "It is", ("that",))
    prompt = Encoder.of(real_tokenizer).prompt(text)
    theirs = KVPressTextGenerationPipeline.preprocess(
        SimpleNamespace(tokenizer=real_tokenizer), text.context, [text.question], text.answer_prefix, 10**9
    )
    assert [prompt.context] == theirs["context_ids"].tolist()
    assert [prompt.question] == theirs["questions_ids"][0].tolist()


@pytest.mark.parametrize("name", ["niah_single_2", "fwe", "qa_2"])
def test_a_real_tokenizer_is_filled_too(real_tokenizer, data, name):
    (sample,) = samples(real_tokenizer, data, name, count=1, length=900)
    assert 800 < len(sample.prompt) + sample.row.max_new_tokens <= 900
    assert real_tokenizer.decode(sample.prompt.context).endswith(sample.row.context)
    assert real_tokenizer.decode(sample.prompt.question).endswith(sample.row.answer_prefix)
