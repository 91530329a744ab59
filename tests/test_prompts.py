"""The frozen prompt bank: 200 story openings, 40 in each bucket of the SIGMA taxonomy."""

import json
from collections import Counter
from pathlib import Path

import pytest

BANK = Path(__file__).parents[1] / "params" / "prompts" / "stories.jsonl"
BUCKETS = ("creative", "divergent", "analogy", "what_if", "neutral")


@pytest.fixture(scope="module")
def prompts():
    return [json.loads(line) for line in BANK.read_text(encoding="utf-8").splitlines()]


def test_ids_number_forty_prompts_in_each_bucket(prompts):
    assert all(set(prompt) == {"id", "bucket", "text"} for prompt in prompts)
    expected = [(f"stories-{bucket}-{k:03d}", bucket) for bucket in BUCKETS for k in range(1, 41)]
    assert [(prompt["id"], prompt["bucket"]) for prompt in prompts] == expected


def test_prompts_are_openings_of_6_to_20_words(prompts):
    for prompt in prompts:
        text = prompt["text"]
        assert 6 <= len(text.split()) <= 20, prompt["id"]
        assert text == " ".join(text.split()) and text.isascii(), prompt["id"]
        assert text[-1] not in ".!?", f"{prompt['id']} leaves nothing to continue"


def test_no_two_prompts_begin_alike(prompts):
    starts = Counter(" ".join(prompt["text"].lower().split()[:5]) for prompt in prompts)
    assert [start for start, count in starts.items() if count > 1] == []
