"""Sampling against transformers' own filters, the model's exact distribution, and plain recomputation."""

import numpy as np
import pytest
import torch
from draws import recomputed, settled
from margins import FALSE_FAILURE
from scipy import stats
from spectral_collapse import generate as module
from spectral_collapse.generate import sample, truncated_probabilities
from spectral_collapse.seeding import stable_seed
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

pytestmark = pytest.mark.numerics

FULL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
DECODINGS = [
    FULL,
    {"temperature": 0.7, "top_k": 0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 10, "top_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.6},
]
GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = (7, 1, 12, 3, 7, 2, 9, 1)
PROMPTS = [torch.randint(2, 61, (length,), generator=GENERATOR).tolist() for length in LENGTHS]
SEEDS = [stable_seed("test", i) for i in range(len(PROMPTS))]


# ---- truncation


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 40, 200, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_probabilities_are_those_of_the_warpers(temperature, top_k, top_p):
    # Rows from peaked to flat: nuclei within and beyond the 128 candidates.
    scale = torch.tensor([8.0, 2.0, 0.5, 0.01], dtype=torch.float64)[:, None]
    logits = scale * torch.randn(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    warped = torch.softmax(TopPLogitsWarper(top_p)(None, warped), dim=-1)
    probabilities, ids = truncated_probabilities(logits, temperature, top_k, top_p)
    assert (probabilities.diff(dim=-1) <= 0).all()
    ours = torch.zeros_like(logits).scatter(1, ids, probabilities)
    torch.testing.assert_close(ours / ours.sum(1, keepdim=True), warped, atol=1e-12, rtol=0)
    # What is kept keeps its probability under the full distribution.
    full = torch.softmax(logits / temperature, dim=-1)
    torch.testing.assert_close(ours, full * (ours > 0), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_number_of_candidates_does_not_matter(decoding):
    scale = torch.tensor([9.0, 3.0, 1.0, 0.3])[:, None]
    logits = scale * torch.randn(4, 300, generator=torch.Generator().manual_seed(2))
    few, few_ids = truncated_probabilities(logits, *decoding.values(), candidates=2)
    all_of_them, ids = truncated_probabilities(logits, *decoding.values(), candidates=300)
    for row in range(4):
        kept = few[row] > 0
        assert torch.equal(few[row][kept], all_of_them[row][all_of_them[row] > 0])
        assert torch.equal(few_ids[row][kept], ids[row][all_of_them[row] > 0])


# ---- drawing


def test_draws_follow_the_distribution_of_the_model(tiny_model):
    """Pairs of successive tokens, 12 × 12 cells, against p(a | prompt) p(b | prompt, a)."""
    model, prompt, count = tiny_model("llama", vocabulary=12), [3, 5, 2], 20_000

    def joint(temperature):
        with torch.no_grad():
            first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1)
            longer = torch.tensor([[*prompt, token] for token in range(12)])
            second = torch.softmax(model(longer).logits[:, -1].double() / temperature, -1)
        return (first[:, None] * second).ravel().numpy()

    seeds = [stable_seed(1, "chi-square", i) for i in range(count)]
    decoding = {**FULL, "temperature": 0.8}
    pairs = np.array(sample(model, [prompt] * count, seeds, 2, **decoding, batch_size=count))
    observed = np.bincount(12 * pairs[:, 0] + pairs[:, 1], minlength=144)

    def p_value(expected):
        rare = expected * count < 5
        assert rare.any()
        counts, shares = (np.append(cells[~rare], cells[rare].sum()) for cells in (observed, expected))
        return stats.chisquare(counts, count * shares).pvalue

    assert p_value(joint(0.8)) > FALSE_FAILURE
    assert p_value(joint(0.85)) < 1e-9  # and would not have passed for a temperature nearby


def test_truncated_draws_stay_within_the_nucleus(tiny_model):
    model, prompt, count = tiny_model("llama", vocabulary=30), [3, 5, 2], 3000
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[:, -1].double()
    expected = torch.softmax(TopPLogitsWarper(0.7)(None, logits), -1)[0].numpy()
    seeds = [stable_seed(2, "nucleus", i) for i in range(count)]
    drawn = sample(model, [prompt] * count, seeds, 1, **{**FULL, "top_p": 0.7}, batch_size=1000)
    observed = np.bincount(np.ravel(drawn), minlength=30)
    kept = expected > 0
    assert 2 < kept.sum() < 30 and observed[~kept].sum() == 0
    assert stats.chisquare(observed[kept], count * expected[kept]).pvalue > FALSE_FAILURE


@pytest.mark.parametrize("decoding", [FULL, DECODINGS[3]])
def test_cache_and_left_padding_change_nothing(tiny_model, architecture, decoding):
    model = tiny_model(architecture)
    seeds = settled(model, PROMPTS, 15, **decoding)
    drawn = sample(model, PROMPTS, seeds, 15, **decoding, batch_size=len(PROMPTS))
    assert drawn == [recomputed(model, *each, 15, **decoding)[0] for each in zip(PROMPTS, seeds, strict=True)]
    assert len({tuple(each) for each in drawn}) == len(PROMPTS)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_texts_do_not_depend_on_batch_or_order(tiny_model, architecture, decoding):
    model = tiny_model(architecture)
    seeds = settled(model, PROMPTS, 20, **decoding)
    whole = sample(model, PROMPTS, seeds, 20, **decoding, batch_size=len(PROMPTS))
    for batch_size in (1, 3, 5):
        assert sample(model, PROMPTS, seeds, 20, **decoding, batch_size=batch_size) == whole
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    prompts, others = ([each[i] for i in order] for each in (PROMPTS, seeds))
    shuffled = sample(model, prompts, others, 20, **decoding, batch_size=3)
    assert shuffled == [whole[i] for i in order]
    alone = sample(model, PROMPTS[2:3], seeds[2:3], 9, **decoding, batch_size=8)
    assert alone == [whole[2][:9]]


def test_texts_depend_on_seeds_and_not_on_global_random_numbers(tiny_model):
    model = tiny_model()
    state = torch.get_rng_state()
    first = sample(model, PROMPTS, SEEDS, 10, **FULL, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert sample(model, PROMPTS, SEEDS, 10, **FULL, batch_size=4) == first
    other = sample(model, PROMPTS, [seed + 1 for seed in SEEDS], 10, **FULL, batch_size=4)
    assert all(one != two for one, two in zip(first, other, strict=True))


# ---- stopping


def test_stop_token_ends_a_text_and_is_left_out(tiny_model):
    model = tiny_model("llama", vocabulary=12)
    prompts = [[3]] * 40
    seeds = settled(model, prompts, 25, **FULL)
    endless = sample(model, prompts, seeds, 25, **FULL, batch_size=40)
    stopped = sample(model, prompts, seeds, 25, **FULL, batch_size=7, stop_token=5)
    assert stopped == [text[: text.index(5)] if 5 in text else text for text in endless]
    lengths = {len(text) for text in stopped}
    assert 0 in lengths and 25 in lengths and len(lengths) > 5


def test_sampling_ends_when_every_text_has_stopped(tiny_model):
    model = tiny_model("llama", vocabulary=12)
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    prompts, seeds = [[3]] * 3, [stable_seed("stop", i) for i in range(3)]
    endless = sample(model, prompts, seeds, 60, **FULL, batch_size=3)
    assert len(steps) == 60
    last = max(text.index(5) for text in endless)
    steps.clear()
    assert max(map(len, sample(model, prompts, seeds, 60, **FULL, batch_size=3, stop_token=5))) == last < 59
    assert len(steps) == last + 1


def test_empty_prompt_is_refused(tiny_model):
    with pytest.raises(ValueError, match="a prompt is empty: begin it with the end-of-text token"):
        sample(tiny_model(), [[1], []], [1, 2], 3, **FULL, batch_size=2)
    assert sample(tiny_model(), [], [], 3, **FULL, batch_size=2) == []


def test_a_batch_that_does_not_fit_is_halved_and_draws_the_same(tiny_model, monkeypatch):
    model, real = tiny_model(), module._sample_batch
    sizes = []

    def cramped(model, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("no room")
        return real(model, prompts, *rest)

    prompts = [[2 + i] for i in range(8)]
    seeds = settled(model, prompts, 5, **FULL)
    whole = sample(model, prompts, seeds, 5, batch_size=8, **FULL)
    monkeypatch.setattr(module, "_sample_batch", cramped)
    assert sample(model, prompts, seeds, 5, batch_size=8, **FULL) == whole
    assert sizes == [8, 4, 2, 2, 2, 2]
