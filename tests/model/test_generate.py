"""Sampling against transformers' own filters, the model's exact distribution, and plain recomputation."""

import numpy as np
import pytest
import torch
from draws import recomputed, settled
from margins import FALSE_FAILURE
from scipy import stats
from spectral_collapse.curvature.model import max_positions
from spectral_collapse.estimate import stable_seed
from spectral_collapse.model import build
from spectral_collapse.model import generate as module
from spectral_collapse.model.generate import sample, truncated_probabilities
from transformers import AutoModelForCausalLM, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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


@pytest.mark.parametrize("decoding", [*DECODINGS, {"temperature": 0.9, "top_k": 200, "top_p": 0.9}])
def test_draws_from_few_tokens_are_those_from_the_whole_vocabulary(decoding):
    """Rows from peaked to flat, whose draws fall among the FEW first tokens and beyond, in one call."""
    generator = torch.Generator().manual_seed(4)
    scale = torch.tensor([8.0, 3.0, 1.5, 0.5, 0.01]).repeat_interleave(400)[:, None]
    logits = scale * torch.randn(2000, 500, generator=generator)
    uniform = torch.rand(2000, dtype=torch.float64, generator=generator)
    tokens, known = module.drawn(logits, uniform, *decoding.values())
    probabilities, ids = truncated_probabilities(logits, *decoding.values(), candidates=500)
    edges = probabilities.cumsum(-1)
    thresholds = uniform[:, None] * edges[:, -1:]
    expected = ids.gather(1, torch.searchsorted(edges, thresholds, right=True).clamp(max=ids.shape[1] - 1))[:, 0]
    share = probabilities.cumsum(-1) if decoding["top_k"] == 0 else edges / edges[:, -1:]
    settled = ((edges - thresholds).abs() > 1e-5).all(1)
    if decoding["top_p"] < 1:
        settled &= ((share - decoding["top_p"]).abs() > 1e-5).all(1)
    assert bool(known) and settled.float().mean() > 0.9
    assert torch.equal(tokens[settled], expected[settled])


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


def test_sampling_ends_when_every_text_has_stopped(tiny_model, monkeypatch):
    model = tiny_model("llama", vocabulary=12)
    steps = []
    for name, found in {"fitting_batch": 3, "_pads": True}.items():  # which take passes of their own
        monkeypatch.setattr(module, name, lambda *_, found=found: found)
    model.register_forward_hook(lambda *_: steps.append(1))
    prompts, seeds = [[3]] * 3, [stable_seed("stop", i) for i in range(3)]
    endless = sample(model, prompts, seeds, 60, **FULL, batch_size=3)
    assert len(steps) == 60
    last = max(text.index(5) for text in endless)
    steps.clear()
    assert max(map(len, sample(model, prompts, seeds, 60, **FULL, batch_size=3, stop_token=5))) == last < 59
    assert len(steps) == last + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": [[1], []]}, "a prompt is empty: begin it with the end-of-text token"),
        ({"prompts": [[1], [61]]}, "a prompt has a token id that is not among the model's, 0 to 60: use the model's"),
        ({"prompts": [[1], [-1]]}, "a prompt has a token id that is not among the model's, 0 to 60: use the model's"),
        ({"prompts": [[1] * 60, [2]]}, "take 65 tokens, the model has 64 positions: shorten block_tokens, story_tok"),
        ({"seeds": [1]}, "there are 2 prompts and 1 seeds: give each its own"),
        ({"new_tokens": 0}, "new_tokens must be 1 or more, not 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"top_p": 0}, "top_p must lie above 0 and be at most 1, not 0"),
        ({"top_p": 1.1}, "top_p must lie above 0 and be at most 1, not 1.1"),
        ({"top_p": np.nan}, "top_p must lie above 0 and be at most 1, not nan"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, not 0.0"),
        ({"temperature": -1}, "temperature must be a finite number above 0, not -1"),
        ({"temperature": np.inf}, "temperature must be a finite number above 0, not inf"),
        ({"top_k": -1}, r"top_k must be a whole number from 0 \(no limit\) on, not -1"),
        ({"top_k": 2.5}, r"top_k must be a whole number from 0 \(no limit\) on, not 2.5"),
        ({"top_k": np.nan}, r"top_k must be a whole number from 0 \(no limit\) on, not nan"),
    ],
)
def test_what_is_no_decoding_or_no_prompt_is_one_sentence(tiny_model, changes, reason):
    given = {"prompts": [[1], [2]], "seeds": [1, 2], "new_tokens": 5, **FULL, "batch_size": 2, **changes}
    with pytest.raises(ValueError, match=f"^sampling: .*{reason}") as caught:
        sample(tiny_model(), **given)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_no_prompts_have_no_continuations(tiny_model):
    assert sample(tiny_model(), [], [], 3, **FULL, batch_size=2) == []


def test_the_smallest_temperature_and_nucleus_leave_the_most_probable_token(tiny_model):
    model = tiny_model()
    greedy = model.generate(
        torch.tensor([[3, 5, 2]]), attention_mask=torch.ones(1, 3), max_new_tokens=8, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[0, 3:].tolist()  # fmt: skip
    for changes in ({"temperature": 1e-300}, {"top_p": 1e-300}, {"top_k": 1.0}):
        assert sample(model, [[3, 5, 2]], [1], 8, **{**FULL, **changes}, batch_size=1) == [greedy]


# ---- models of every kind

# Of the usual names of sizes each configuration takes those that it has.
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "ffn_hidden_size": 48, "max_position_embeddings": 64, "max_seq_len": 64, "rotary_dim": 4,
    "attention_hidden_size": 32, "state_size": 8, "time_step_rank": 4, "sliding_window": 8, "num_local_experts": 4,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "is_decoder": True, "vocab_size": 61,
}  # fmt: skip
# Prompts of several lengths in a batch, or of one; with a cache, or with the text read anew.
KINDS = {
    **dict.fromkeys(("falcon", "gemma2", "gpt_neox", "gptj", "mistral", "mixtral", "phi", "stablelm"), "padded"),
    **dict.fromkeys(("bloom", "mpt", "mamba"), "one length"),
    **dict.fromkeys(("openai-gpt", "rwkv", "recurrent_gemma"), "read anew"),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def foreign(kind):
    """An untrained model of another architecture, whose predictions are far from even."""
    names = set(CONFIG_MAPPING[kind]().to_dict()) | set(CONFIG_MAPPING[kind].attribute_map)
    sizes = {name: size for name, size in SIZES.items() if name in names}
    if kind == "recurrent_gemma":
        sizes["num_hidden_layers"] = 3  # the third has its attention
    config = CONFIG_MAPPING[kind](**sizes)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.mark.parametrize("decoding", [FULL, DECODINGS[3]])
def test_every_architecture_draws_what_plain_recomputation_draws(foreign, kind, decoding):
    drawn = sample(foreign, PROMPTS, SEEDS, 10, **decoding, batch_size=5)
    assert drawn == [recomputed(foreign, *each, 10, **decoding)[0] for each in zip(PROMPTS, SEEDS, strict=True)]
    assert len({tuple(each) for each in drawn}) > len(PROMPTS) / 2
    assert module._pads(foreign) == (KINDS[kind] == "padded")
    seen = []
    with foreign.get_input_embeddings().register_forward_hook(lambda _, tokens, __: seen.append(tokens[0].shape[1])):
        module._sample_batch(foreign, [[3, 5]], np.zeros((1, 3)), None, (1.0, 0, 1.0), (), False)
    assert seen == ([2, 3, 4] if KINDS[kind] == "read anew" else [2, 1, 1])


def test_positions_that_do_not_count_from_zero_are_not_padded():
    config = CONFIG_MAPPING["roberta"](
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, is_decoder=True
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert {"attention_mask", "position_ids", "past_key_values"} <= module._inputs(model)
    assert not module._pads(model)


def test_every_architecture_is_greedy_as_transformers_is(foreign):
    ours = sample(foreign, PROMPTS[:1], SEEDS[:1], 10, **{**FULL, "top_k": 1}, batch_size=1)
    prompt = torch.tensor(PROMPTS[:1])
    foreign.generation_config.eos_token_id = None
    theirs = foreign.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False, pad_token_id=1
    )
    assert ours == theirs[:, prompt.shape[1] :].tolist()


def test_a_length_is_limited_where_the_configuration_says_so(foreign, kind):
    limit = None if kind in ("bloom", "mamba", "recurrent_gemma") else 64
    assert max_positions(foreign) == limit
    if limit:
        with pytest.raises(ValueError, match="take 65 tokens, the model has 64 positions"):
            sample(foreign, [[2] * 60], [1], 5, **FULL, batch_size=1)
    else:
        assert len(sample(foreign, [[2] * 66], [1], 2, **FULL, batch_size=1)[0]) == 2


# ---- tokens without text


def test_suppressed_tokens_are_never_drawn_and_leave_the_others_their_shares(tiny_model, architecture):
    model, prompt, count = tiny_model(architecture, vocabulary=12), [3, 5, 2], 4000
    seeds = [stable_seed(3, "suppressed", i) for i in range(count)]
    drawn = sample(model, [prompt] * count, seeds, 1, **FULL, batch_size=count, suppress_tokens=[0, 7, 11])
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1).numpy()
    expected[[0, 7, 11]] = 0
    expected = count * expected / expected.sum()
    observed = np.bincount(np.ravel(drawn), minlength=12)
    assert observed[[0, 7, 11]].sum() == 0
    # Binomial counts: 6 standard deviations and one, for twelve tokens of four models, fail once in ten million.
    assert (np.abs(observed - expected) <= 1 + 6 * np.sqrt(expected)).all()


# ---- weights that are no numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_draws_nothing(tiny_model, architecture, value):
    model = tiny_model(architecture)
    weight = dict(model.named_parameters())
    name = next(name for name in weight if ".1." in name)
    weight[name].data.view(-1)[3] = value
    with pytest.raises(ValueError, match=f"^sampling: the weights {name} are not finite: take an earlier checkp"):
        sample(model, PROMPTS, SEEDS, 4, **FULL, batch_size=3)


def test_predictions_that_overflow_are_told_from_weights_that_did(tiny_model):
    model = tiny_model().half()
    model.lm_head.weight.data.fill_(6e4)
    with pytest.raises(ValueError, match="predictions are not finite though its weights are, so that float16 overflo"):
        sample(model, PROMPTS, SEEDS, 4, **FULL, batch_size=3)


def test_of_many_weights_that_are_not_finite_three_are_named(tiny_model):
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    count = len(list(model.parameters()))
    named = ", ".join(name for name, _ in list(model.named_parameters())[:3])
    assert build.not_finite_weights(model) == f"{named} and {count - 3} more"
    assert build.not_finite_weights(tiny_model()) == ""


# ---- batches


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
    monkeypatch.setattr(module, "fitting_batch", lambda model, limit, *rest: limit)
    monkeypatch.setattr(module, "_sample_batch", cramped)
    assert sample(model, prompts, seeds, 5, batch_size=8, **FULL) == whole
    assert sizes == [8, 4, 2, 2, 2, 2]
