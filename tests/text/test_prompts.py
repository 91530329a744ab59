"""The frozen prompt banks: 200 openings each (SIGMA, Appendix C.2: 163-200), 40 in each bucket of its taxonomy."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "params" / "prompts"
BANKS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))
BUCKETS = ("creative", "divergent", "analogy", "what_if", "neutral")


def read(bank):
    return [json.loads(line) for line in (FOLDER / f"{bank}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=BANKS)
def bank(request):
    return request.param


@pytest.fixture(scope="module")
def prompts(bank):
    return read(bank)


def test_every_domain_of_the_study_has_a_bank():
    assert BANKS == ["finance", "stories", "technology"]


def test_ids_number_forty_prompts_in_each_bucket(bank, prompts):
    assert all(set(prompt) == {"id", "bucket", "text"} for prompt in prompts)
    expected = [(f"{bank}-{bucket}-{k:03d}", bucket) for bucket in BUCKETS for k in range(1, 41)]
    assert [(prompt["id"], prompt["bucket"]) for prompt in prompts] == expected


def test_prompts_are_openings_of_6_to_20_words(prompts):
    for prompt in prompts:
        text = prompt["text"]
        assert 6 <= len(text.split()) <= 20, prompt["id"]
        assert text == " ".join(text.split()) and text.isascii(), prompt["id"]
        assert text[-1] not in ".!?", f"{prompt['id']} leaves nothing to continue"


def test_no_two_prompts_of_any_banks_begin_alike():
    starts = Counter(" ".join(prompt["text"].lower().split()[:4]) for name in BANKS for prompt in read(name))
    assert [start for start, count in starts.items() if count > 1] == []


def test_prompts_share_few_words(prompts):
    """Jaccard index |A ∩ B| / |A ∪ B| of the word sets of each pair: small on average, below a half for every pair."""
    words = [set(re.findall(r"[a-z']+", prompt["text"].lower())) for prompt in prompts]
    overlap = {
        (i, j): len(words[i] & words[j]) / len(words[i] | words[j]) for i, j in combinations(range(len(words)), 2)
    }
    i, j = max(overlap, key=overlap.get)
    assert overlap[i, j] < 0.5, f"{prompts[i]['id']} and {prompts[j]['id']} are nearly the same text"
    assert sum(overlap.values()) / len(overlap) < 0.1
