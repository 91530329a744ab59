"""Real text: files read and explained, the hub pinned, and parts that never overlap."""

import re
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from spectral_collapse.record import params, schema
from spectral_collapse.text import corpora, tokenizers
from spectral_collapse.text.corpora import RealText, load_corpus, read_documents

SMALL = {
    "vocabulary_size": 300, "block_tokens": 16, "blocks_per_generation": 5, "held_out_blocks": 4,
    "curvature_blocks": 2, "baseline_blocks": 12, "baseline_sequence_tokens": 32, "story_tokens": 32,
    "opening_tokens": 6,
}  # fmt: skip


def numbered(start: int, stop: int) -> list[str]:
    return [f"Story {n}: the fox number {n} ran to house {n * 7} and slept." for n in range(start, stop)]


def from_file(path: Path, **changes) -> schema.Params:
    return params.load("smoke", **{**SMALL, "corpus": "tinystories", "data_path": str(path), **changes})


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> RealText:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(numbered(0, 200)))
    return RealText(from_file(path))


# ---- files


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\nb\n\n c \n\n\n\nd\n", ["a\nb", "c", "d"]),
        ("a\n\nb<|endoftext|>\nc\n<|endoftext|><|endoftext|>\n", ["a\n\nb", "c"]),
        ("one line", ["one line"]),
        ("a\r\n\r\nb\r\nc", ["a", "b\nc"]),
        ("\ufeffa\n\nnaïve 🦊", ["a", "naïve 🦊"]),
    ],
)
def test_documents_are_separated(tmp_path, text, documents):
    (tmp_path / "text.txt").write_bytes(text.encode())
    assert read_documents(tmp_path / "text.txt") == documents


def test_every_line_of_jsonl_is_a_document(tmp_path):
    lines = ['{"text": " a\\n\\nb ", "id": 3}', "", '"c\\u2028d"', '{"text": ""}', '{"text": "naïve 🦊"}\r']
    (tmp_path / "text.jsonl").write_bytes("\n".join(lines).encode())
    assert read_documents(tmp_path / "text.jsonl") == ["a\n\nb", "c\u2028d", "naïve 🦊"]


@pytest.mark.parametrize(
    "line",
    ["{", '{"story": "a"}', "3", "null", '["a"]', '{"text": 3}', '{"text": "\\u0000"}', '"\\ud800"', "[" * 10**5],
)
def test_a_line_that_is_no_document_is_named(tmp_path, line):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n\n' + line)
    path = re.escape(str(tmp_path / "text.jsonl"))
    with pytest.raises(ValueError, match=rf'^data file {path}, line 3: a document is a line of JSON, {{"text": "…"}}'):
        read_documents(tmp_path / "text.jsonl")


def test_a_relative_path_is_told_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^data file {re.escape(str(tmp_path / 'a' / 'stories.txt'))} does not exist"):
        load_corpus(from_file(Path("a/stories.txt")))
    (tmp_path / "stories.txt").write_text("\n\n".join(numbered(0, 20)))
    assert load_corpus(from_file(Path("stories.txt"))).train == numbered(0, 18)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("a")
    assert read_documents(Path("~/text.txt")) == ["a"]


def test_unusable_file_is_explained_in_a_sentence(tmp_path):
    (tmp_path / "empty").write_text(" \n\n<|endoftext|>\n")
    (tmp_path / "latin").write_bytes("ein Mädchen".encode("latin-1"))
    cases = {
        "missing": "does not exist: set data_path",
        "empty": "is empty: set data_path",
        "latin": r"is not UTF-8 text \(byte 5\): convert it",
        ".": "cannot be read: set data_path",
        "latin/below": "cannot be read: set data_path",
    }
    for name, reason in cases.items():
        path = re.escape(str(tmp_path / name))
        with pytest.raises(ValueError, match=f"^data file {path} {reason}") as caught:
            read_documents(tmp_path / name)
        assert "\n" not in str(caught.value) and not isinstance(caught.value, UnicodeError)


def test_last_tenth_is_held_out_and_documents_limits_the_rest(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(numbered(0, 100)))
    corpus = load_corpus(from_file(tmp_path / "text.txt"))
    assert (corpus.train, corpus.held_out) == (numbered(0, 90), numbered(90, 100))
    limited = load_corpus(from_file(tmp_path / "text.txt", documents=7))
    assert (limited.train, limited.held_out) == (numbered(0, 7), numbered(90, 100))


def test_held_out_file_of_ones_own(tmp_path):
    (tmp_path / "train.txt").write_text("\n\n".join(numbered(0, 3)))
    (tmp_path / "held.txt").write_text("\n\n".join(numbered(50, 52)))
    held_out = str(tmp_path / "held.txt")
    corpus = load_corpus(from_file(tmp_path / "train.txt", held_out_path=held_out, documents=2))
    assert (corpus.train, corpus.held_out) == (numbered(0, 2), numbered(50, 52))


def test_file_with_few_documents_needs_a_held_out_file(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(numbered(0, 9)))
    with pytest.raises(ValueError, match=r"has 9 documents, too few .*separate .*or set held_out_path"):
        load_corpus(from_file(tmp_path / "text.txt"))


# ---- hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Calls made to the hub; it answers with numbered documents, in files of ten."""
    calls = []

    def snapshot(*given):
        calls.append(given)
        for name, starts in (("train", (0, 10, 20)), ("validation", (90,))):
            for start in starts:
                path = tmp_path / "data" / f"{name}-{start:05}.parquet"
                path.parent.mkdir(exist_ok=True)
                pyarrow.parquet.write_table(pyarrow.table({"text": numbered(start, start + 10)}), path)
        return tmp_path

    monkeypatch.setattr(corpora.hub, "snapshot", snapshot)
    return calls


@pytest.mark.parametrize(("documents", "held_out"), [(7, 1), (10, 1), (13, 1), (1000, 10)])
def test_hub_is_asked_for_one_pinned_revision(hub, documents, held_out):
    corpus = load_corpus(params.load("tinystories", documents=documents))
    revision = corpora.TINYSTORIES_REVISION
    assert re.fullmatch("[0-9a-f]{40}", revision)
    files = ["data/train-*.parquet", "data/validation-*.parquet"]
    assert hub == [("roneneldan/TinyStories", revision, files, "dataset")]
    assert (corpus.train, corpus.held_out) == (numbered(0, min(documents, 30)), numbered(90, 90 + held_out))


def test_file_keeps_the_hub_out(hub, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(numbered(0, 20)))
    load_corpus(from_file(tmp_path / "text.txt"))
    load_corpus(params.load("smoke", documents=20))
    assert hub == []


@pytest.mark.parametrize("profile", ["tinystories", "smollm2", "qwen", "llama100m"])
def test_unreachable_hub_is_explained_in_a_sentence(profile):
    with pytest.raises(ValueError) as caught:
        load_corpus(params.load(profile))
    assert str(caught.value) == (
        "TinyStories could not be read from the hub (data/train-*.parquet, data/validation-*.parquet of "
        "'roneneldan/TinyStories' at revision f54c09fd2331: not on this machine, and the hub cannot be reached "
        "(OfflineModeIsEnabled)): connect this machine; or name a text file of yours with -p data_path stories.txt; or "
        "take the profile default, which needs no hub."
    )


# ---- parts


def test_storyworld_is_the_same_each_time_and_its_splits_differ():
    corpus = load_corpus(params.load("smoke", documents=300))
    assert corpus == load_corpus(params.load("smoke", documents=300))
    assert (len(corpus.train), len(corpus.held_out)) == (300, 30)
    assert not set(corpus.train) & set(corpus.held_out)


def test_baseline_and_slices_are_consecutive_parts_of_one_shuffled_stream(real):
    tokens = torch.cat([real.baseline(1).ravel(), *(real.slice(1, index).ravel() for index in range(10))])
    assert tokens.dtype == torch.int64
    documents = real.tokenizer.decode(tokens).split(tokenizers.END_OF_TEXT)
    assert documents[0] == ""
    whole = documents[1:-1]  # the last one is cut off
    assert len(whole) > 25 and len(set(whole)) == len(whole)
    assert set(whole) <= set(numbered(0, 180)) and whole != sorted(whole)


def test_shapes_of_the_parts(real):
    assert real.baseline(1).shape == (6, 32)
    assert real.slice(1, 3).shape == (5, 16)
    assert real.held_out.shape == (4, 16)


def test_order_depends_on_the_seed_and_held_out_text_does_not(real):
    again = RealText(real.params)
    for seed in (1, 2):
        assert torch.equal(again.slice(seed, 2), real.slice(seed, 2))
        assert torch.equal(again.baseline(seed), real.baseline(seed))
    assert again.sha256 == real.sha256 and torch.equal(again.held_out, real.held_out)
    assert not torch.equal(real.slice(1, 0), real.slice(2, 0))
    assert not torch.equal(real.baseline(1), real.baseline(2))
    held_out = "".join(tokenizers.END_OF_TEXT + text for text in numbered(180, 200))
    assert held_out.startswith(real.tokenizer.decode(real.held_out.ravel()))


def test_fingerprint_follows_text_and_tokenizer(real, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join([*numbered(0, 199), "Another end."]))
    assert RealText(from_file(tmp_path / "text.txt")).sha256 != real.sha256
    assert RealText(real.params.model_copy(update={"vocabulary_size": 290})).sha256 != real.sha256


def test_openings_begin_documents_and_come_from_the_other_end(real):
    openings = real.openings(1)
    assert len(openings) == 5 and len({tuple(opening) for opening in openings}) == 5
    texts = [tokenizers.END_OF_TEXT + text for text in numbered(0, 180)]
    for opening in openings:
        assert len(opening) == 6 and opening[0] == real.separator
        text = real.tokenizer.decode(opening)
        assert any(each.startswith(text) for each in texts)
    shown = real.tokenizer.decode(torch.cat([real.baseline(1).ravel(), real.slice(1, 0).ravel()]))
    assert not any(real.tokenizer.decode(opening[1:]) in shown for opening in openings)
    assert openings == RealText(real.params).openings(1) != real.openings(2)


def test_openings_repeat_where_there_are_few_documents(real):
    few = RealText(real.params.model_copy(update={"documents": 3, "vocabulary_size": 280}))
    openings = few.openings(1)
    assert len(openings) == 5 and openings[:2] == openings[3:]
    with pytest.raises(ValueError, match="no document has 500 tokens: lower opening_tokens"):
        RealText(real.params.model_copy(update={"opening_tokens": 500})).openings(1)


def test_documents_are_tokenised_in_parts(real, monkeypatch):
    monkeypatch.setattr(corpora, "ENCODED", 7)
    parts = RealText(real.params)
    assert parts.sha256 == real.sha256 and torch.equal(parts.slice(1, 3), real.slice(1, 3))


def test_too_little_text_says_what_to_do(real):
    with pytest.raises(ValueError, match=r"^real slice 1000: 80,\d{3} tokens are needed and the corpus has \d,\d{3}"):
        real.slice(1, 1000)
    for key, part in (("baseline_blocks", "base model's text"), ("held_out_blocks", "held-out text")):
        with pytest.raises(ValueError, match=f"^{part}: .*: give more text .*or lower baseline_blocks"):
            RealText(real.params.model_copy(update={key: 10**6})).baseline(1)


def test_text_may_be_used_to_the_last_token(real):
    available = sum(1 + len(ids) for ids in real.tokenizer(numbered(0, 180)).input_ids)

    def baseline(blocks):
        changes = {"baseline_blocks": blocks, "block_tokens": 1, "baseline_sequence_tokens": 1}
        return RealText(real.params.model_copy(update=changes)).baseline(1)

    assert baseline(available).shape == (available, 1)
    with pytest.raises(ValueError, match=f"{available + 1:,} tokens are needed and the corpus has {available:,}:"):
        baseline(available + 1)


# ---- tokenizer


def test_tokenizer_round_trip(real):
    for text in (
        "Story 3: the fox ran.",
        "Füchse 🦊\n\n\ttabs  and   spaces ",
        "don't , stop .",
        "\x00\x7f ÿ 漢字",
        "",
    ):
        ids = real.tokenizer(text, add_special_tokens=False).input_ids
        assert real.tokenizer.decode(ids) == text
        assert real.separator not in ids
    assert real.separator == real.tokenizer.eos_token_id == 0
    assert real.tokenizer.decode([0]) == tokenizers.END_OF_TEXT
    assert 257 <= len(real.tokenizer) <= 300
