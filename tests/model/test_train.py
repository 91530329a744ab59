"""Training: the step in closed form, and a state that survives interruption with the same weights."""

import json
import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from margins import spread_is
from safetensors import safe_open
from scipy import stats
from spectral_collapse.machine import memory, speed
from spectral_collapse.model import train as training
from spectral_collapse.model.precursors import anchor_statistics
from spectral_collapse.model.train import Recipe, TrainingDiverged, perplexity, train
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

RECIPE = Recipe(
    epochs=2, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.2, schedule="cosine"
)  # fmt: skip
# 22 blocks in batches of 4: six steps an epoch, the last one of two blocks.
BLOCKS = torch.randint(0, 61, (22, 10), generator=torch.Generator().manual_seed(0))
STEPS = 12
PARTS = (1, "training", 2)


@pytest.fixture
def fit(tmp_path):
    """Trains a model with a state file in tmp_path; returns its losses and what it said."""

    def run(model, recipe=RECIPE, *, identity="this", blocks=BLOCKS, seed_parts=PARTS, state_steps=5, **options):
        said = []
        losses = train(
            model, blocks, recipe, seed_parts=seed_parts, state=tmp_path / "state.safetensors",
            state_steps=state_steps, identity=identity, say=said.append, **options,
        )  # fmt: skip
        return losses, said

    run.state = tmp_path / "state.safetensors"
    return run


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Killed(BaseException):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the optimizer raise before its n-th step."""

    def after(steps: int):
        original, left = torch.optim.AdamW.step, [steps]

        def step(self, *args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                monkeypatch.setattr(torch.optim.AdamW, "step", original)
                raise Killed
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)

    return after


# ---- interruption


@pytest.mark.parametrize("steps", [0, 4, 5, 8, 11])
def test_interrupted_training_ends_with_the_same_weights(tiny_model, architecture, fit, interrupt, tmp_path, steps):
    whole = tiny_model(architecture)
    losses, said = fit(whole)
    assert len(losses) == STEPS and said == [] and not whole.training
    (tmp_path / "state.safetensors").unlink()

    interrupt(steps)
    with pytest.raises(Killed):
        fit(tiny_model(architecture))
    resumed = tiny_model(architecture)
    torch.manual_seed(steps)  # whatever the new process' own random numbers are
    again, said = fit(resumed)
    assert said == ([] if steps < 5 else [f"training: resuming at step {steps // 5 * 5} of 12."])
    assert again == losses
    assert same(resumed, whole) and not same(resumed, tiny_model(architecture))


@pytest.mark.parametrize("sharpness_radius", [0.0, 0.05])
def test_frozen_parameters_stay_and_are_in_no_state(
    tiny_model, architecture, fit, interrupt, tmp_path, sharpness_radius
):
    recipe = replace(RECIPE, sharpness_radius=sharpness_radius)

    def frozen():
        model = tiny_model(architecture)
        for index, parameter in enumerate(model.parameters()):
            parameter.requires_grad = index % 3 == 1
        return model

    whole = frozen()
    losses, _ = fit(whole, recipe)
    (tmp_path / "state.safetensors").unlink()
    interrupt(8)
    with pytest.raises(Killed):
        fit(frozen(), recipe, state_steps=3)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as state:
        saved = {int(name.partition(".")[2]) for name in state.keys()}  # noqa: SIM118
    count = len(list(whole.parameters()))
    assert saved == set(range(1, count, 3))
    resumed = frozen()
    again, said = fit(resumed, recipe)
    assert said and again == losses and same(resumed, whole)
    untouched = tiny_model(architecture).parameters()
    moved = [not torch.equal(a, b) for a, b in zip(whole.parameters(), untouched, strict=True)]
    assert moved == [index % 3 == 1 for index in range(count)]


def test_parameters_without_a_gradient_are_left_alone(tiny_model, fit, interrupt):
    """As of an expert that no token is sent to."""

    def idle():
        model = tiny_model()
        model.idle = torch.nn.Linear(3, 3)
        torch.nn.init.ones_(model.idle.weight)
        torch.nn.init.ones_(model.idle.bias)
        return model

    whole = idle()
    losses, _ = fit(whole)
    interrupt(7)
    with pytest.raises(Killed):
        fit(idle(), identity="other")
    resumed = idle()
    again, said = fit(resumed, identity="other")
    assert said == ["training: resuming at step 5 of 12."] and again == losses and same(resumed, whole)
    assert bool((resumed.idle.weight == 1).all())


def test_a_model_that_is_frozen_throughout_is_refused(tiny_model, fit):
    with pytest.raises(
        ValueError, match=r"^training: every parameter of the model is frozen: set requires_grad of som"
    ):
        fit(tiny_model().requires_grad_(False))


# ---- weights that are no numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named_before_training_and_at_evaluation(tiny_model, architecture, fit, value):
    model = tiny_model(architecture)
    name, parameter = list(model.named_parameters())[-3]
    parameter.data.view(-1)[1] = value
    with pytest.raises(ValueError, match=rf"^training: the weights {name} are not finite before it begins: load other"):
        fit(model)
    with pytest.raises(ValueError, match=rf"^held-out perplexity: the weights {name} are not finite: take an earlier"):
        perplexity(model, BLOCKS, 4)
    with pytest.raises(ValueError, match=rf"^anchor entropy: the weights {name} are not finite: take an earlier"):
        anchor_statistics(model, BLOCKS, 4)


def test_weights_that_the_last_step_breaks_are_noticed(tiny_model, fit, monkeypatch):
    """No later loss would show them."""
    model, step, count = tiny_model(), torch.optim.AdamW.step, [0]

    def breaking(self, *given, **options):
        result = step(self, *given, **options)
        count[0] += 1
        if count[0] == STEPS:
            model.lm_head.weight.data[3] = math.nan
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    with pytest.raises(
        TrainingDiverged, match=r"stopped at step 12: the weights model\.embed_tokens\.weight are not fin"
    ) as e:
        fit(model)
    assert len(e.value.losses) == STEPS


def test_interrupted_twice(tiny_model, fit, interrupt, tmp_path):
    whole = tiny_model()
    losses, _ = fit(whole)
    (tmp_path / "state.safetensors").unlink()
    for steps in (6, 6):
        interrupt(steps)
        with pytest.raises(Killed):
            fit(tiny_model())
    with safe_open(tmp_path / "state.safetensors", framework="pt") as state:
        assert '"identity": "this"' in state.metadata()["note"]
    resumed = tiny_model()
    again, said = fit(resumed)
    assert said == ["training: resuming at step 10 of 12."]
    assert again == losses and same(resumed, whole)


@pytest.mark.parametrize("damage", ["identity", "truncated", "empty", "text", "header", "foreign", "weight", "losses"])
def test_state_that_is_not_of_this_training_is_ignored(tiny_model, fit, interrupt, tmp_path, damage):
    state = tmp_path / "state.safetensors"
    whole = tiny_model()
    losses, _ = fit(whole, identity="other" if damage == "identity" else "this")
    state.unlink()
    interrupt(7)
    with pytest.raises(Killed):
        fit(tiny_model())
    content = state.read_bytes()
    if damage == "foreign":
        tiny_model().save_pretrained(tmp_path)
        state.write_bytes((tmp_path / "model.safetensors").read_bytes())
    elif damage != "identity":
        damaged = {
            "truncated": content[:-7],
            "empty": b"",
            "text": b"no state",
            "header": b"\xff" + content[1:],
            # One bit of a number, which safetensors and JSON read as another number.
            "weight": content[:-7] + bytes([content[-7] ^ 64]) + content[-6:],
            "losses": re.sub(rb"(losses.{9})(\d)", lambda found: found[1] + bytes([found[2][0] ^ 1]), content, count=1),
        }
        assert damaged[damage] != content
        state.write_bytes(damaged[damage])
    fresh = tiny_model()
    again, said = fit(fresh, identity="other" if damage == "identity" else "this")
    assert said == [] and again == losses and same(fresh, whole)


# ---- what a run of steps is


def test_every_block_is_met_once_an_epoch_in_an_order_of_its_own(tiny_model, fit):
    def batches(**options):
        seen, model = [], tiny_model()
        model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
        fit(model, **options)
        return seen

    seen = batches()
    assert [len(batch) for batch in seen] == [4, 4, 4, 4, 4, 2] * 2
    epochs = [torch.cat(seen[:6]), torch.cat(seen[6:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(BLOCKS.tolist()) and not torch.equal(epoch, BLOCKS)
    assert not torch.equal(*epochs)
    assert not torch.equal(torch.cat(batches(seed_parts=(2, "training", 2))[:6]), epochs[0])
    assert not torch.equal(torch.cat(batches(seed_parts=(1, "training", 3))[:6]), epochs[0])


def gradient(model, blocks):
    loss = model(input_ids=blocks, labels=blocks).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), gradients, math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def test_first_step_in_closed_form(tiny_model, fit):
    """AdamW's first step is w (1 − η λ) − η g / (|g| + ε); vectors do not decay, λ = 0."""
    blocks, rate, decay = BLOCKS[:4], 1e-2, 0.5
    model, trained = tiny_model(), tiny_model()
    losses, _ = fit(trained, Recipe(1, 4, rate, decay, 0.0, "constant"), blocks=blocks)
    loss, gradients, norm = gradient(model, blocks)
    assert losses == [pytest.approx(loss, rel=1e-6)]
    vectors = 0
    for before, after, g in zip(model.parameters(), trained.parameters(), gradients, strict=True):
        g = g / max(norm, 1)
        vectors += before.ndim == 1
        kept = before * (1 - rate * decay) if before.ndim > 1 else before
        torch.testing.assert_close(after, kept - rate * g / (g.abs() + 1e-8), atol=1e-5, rtol=1e-5)
    assert vectors == 5


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_gradient_is_clipped_to_norm_one(tiny_model, fit, interrupt, tmp_path, scale):
    """Adam's first moment after one step is (1 − β₁) g, here read from the saved state."""
    _, gradients, norm = gradient(tiny_model(), BLOCKS[:4])
    assert norm > 1 > 1e-3 * norm
    model = tiny_model()
    model.register_forward_hook(lambda _, __, output: output.__setitem__("loss", output.loss * scale))
    interrupt(1)
    with pytest.raises(Killed):
        fit(model, Recipe(2, 4, 1e-2, 0.0, 0.0, "constant"), blocks=BLOCKS[:4], state_steps=1)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as state:
        for index, g in enumerate(gradients):
            moment = state.get_tensor(f"exp_avg.{index}")
            torch.testing.assert_close(moment, 0.1 * g * min(scale, 1 / norm), atol=1e-6, rtol=1e-4)


def test_constant_text_is_learned(tiny_model, fit):
    blocks = torch.full((8, 10), 7)
    losses, _ = fit(tiny_model(), Recipe(20, 4, 1e-2, 0.0, 0.1, "linear"), blocks=blocks)
    assert losses[-1] < 0.1 < losses[0]


def test_the_callers_random_numbers_stay_as_they_are(tiny_model, fit):
    state = torch.get_rng_state()
    fit(tiny_model("gpt2"))
    assert torch.equal(torch.get_rng_state(), state)


# ---- learning rate


def test_rates_at_known_steps():
    def rates(schedule, warmup=0.2):
        recipe = Recipe(1, 1, 2.0, 0.0, warmup, schedule)
        return [recipe.rate(step, 10) for step in range(10)]

    assert rates("constant") == [1.0] + [2.0] * 9
    assert rates("constant", warmup=0.0) == [2.0] * 10
    assert rates("linear") == pytest.approx([1, 2, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25])
    cosine = [1, 2, *(1 + math.cos(math.pi * k / 8) for k in range(8))]
    assert rates("cosine") == pytest.approx(cosine)
    assert Recipe(1, 1, 2.0, 0.0, 0.9, "cosine").rate(0, 1) == 2.0


@pytest.mark.parametrize(
    ("schedule", "peer"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_rates_after_warm_up_are_those_of_transformers(schedule, peer):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = peer(optimizer, num_warmup_steps=7, num_training_steps=70)
    expected = [scheduler.lr_lambdas[0](step) * 3e-4 for step in range(7, 70)]
    recipe = Recipe(1, 1, 3e-4, 0.0, 0.1, schedule)
    assert [recipe.rate(step, 70) for step in range(7, 70)] == pytest.approx(expected, rel=1e-12)


def test_optimizer_follows_the_recipe(tiny_model, fit, monkeypatch):
    used, original = [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        used.append({group["lr"] for group in self.param_groups})
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    fit(tiny_model())
    assert used == [{RECIPE.rate(step, STEPS)} for step in range(STEPS)]


# ---- divergence


def test_divergence_is_raised_with_the_losses_before_it(tiny_model, fit):
    whole, _ = fit(tiny_model())
    for bad in (math.nan, math.inf):
        model, calls = tiny_model(), []

        def spoil(_, __, output, bad=bad, calls=calls):
            calls.append(1)
            if len(calls) == 4:
                output["loss"] = output.loss * 0 + bad

        model.register_forward_hook(spoil)
        with pytest.raises(TrainingDiverged, match="stopped at step 3: the loss is not finite") as caught:
            fit(model, identity=str(bad))
        assert caught.value.losses == whole[:3]
        assert all(parameter.isfinite().all() for parameter in model.parameters())


# ---- perplexity


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_perplexity_is_the_exponential_of_the_models_own_loss(tiny_model, architecture, batch_size):
    model = tiny_model(architecture)
    with torch.no_grad():
        loss = model(input_ids=BLOCKS, labels=BLOCKS).loss.item()
    model.train()  # dropout must not leak into a measurement
    found = perplexity(model, BLOCKS, batch_size)
    assert found["held_out_loss_nats"] == pytest.approx(loss, rel=1e-6)
    assert found["held_out_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_perplexity_of_equal_probabilities_is_the_size_of_the_vocabulary(tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = perplexity(model, BLOCKS, 8)
    assert found["held_out_perplexity"] == pytest.approx(61, rel=1e-6)
    assert found["held_out_perplexity_standard_error"] == pytest.approx(0, abs=1e-5)


def test_standard_error_of_perplexity_agrees_with_a_bootstrap(tiny_model):
    model = tiny_model()
    blocks = torch.randint(0, 61, (400, 10), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        losses = np.array([model(input_ids=block[None], labels=block[None]).loss.item() for block in blocks])
    draws = np.random.default_rng(0).choice(losses, (4000, len(losses)))
    bootstrap = np.exp(draws.mean(axis=1))
    found = perplexity(model, blocks, 50)
    spread_is(bootstrap, found["held_out_perplexity_standard_error"])
    assert found["held_out_loss_standard_error"] == pytest.approx(stats.sem(losses), rel=1e-4)
    ends = stats.t.interval(0.95, len(losses) - 1, losses.mean(), stats.sem(losses))
    assert found["held_out_perplexity_interval"] == pytest.approx(np.exp(ends), rel=1e-4)


def test_state_is_not_written_at_the_end(tiny_model, fit, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(training, "_save_state", lambda *given: saved.append(len(given[-1]["losses"])))
    fit(tiny_model(), Recipe(5, 11, 1e-3, 0.0, 0.0, "constant"))  # ten steps, a state every five
    assert saved == [5]


# ---- interventions in the training


def test_warmup_stable_decay_is_that_of_transformers():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    scheduler = get_wsd_schedule(
        optimizer, num_warmup_steps=5, num_decay_steps=10, num_training_steps=50, decay_type="linear"
    )
    recipe = Recipe(1, 1, 2.0, 0.0, 0.1, "warmup_stable_decay")
    rates = [recipe.rate(step, 50) for step in range(50)]
    assert rates[5:] == pytest.approx([scheduler.lr_lambdas[0](step) * 2.0 for step in range(5, 50)])
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:41] == [2.0] * 36 and rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("steps", [1, 6, 9])
def test_steps_replace_epochs(tiny_model, fit, steps):
    whole, short = tiny_model(), tiny_model()
    losses, _ = fit(whole, replace(RECIPE, schedule="constant", warmup_fraction=0.0))
    fewer, _ = fit(short, replace(RECIPE, schedule="constant", warmup_fraction=0.0, steps=steps), identity="short")
    assert fewer == losses[:steps]


def test_no_steps_leave_the_model_as_it_is(tiny_model, fit):
    model = tiny_model()
    assert fit(model, replace(RECIPE, steps=0)) == ([], []) and same(model, tiny_model())


def test_sharpness_aware_step_is_the_two_gradient_formula(tiny_model, fit):
    """AdamW's first step from w, with the gradient at w + ρ g/‖g‖."""
    blocks, rate, radius = BLOCKS[:4], 1e-2, 0.1
    model, trained = tiny_model(), tiny_model()
    losses, _ = fit(trained, Recipe(1, 4, rate, 0.0, 0.0, "constant", sharpness_radius=radius), blocks=blocks)
    loss, gradients, norm = gradient(model, blocks)
    assert losses == [pytest.approx(loss, rel=1e-6)]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), gradients, strict=True):
            parameter += radius * g / norm
    _, there, size = gradient(model, blocks)
    for start, after, g in zip(before, trained.parameters(), there, strict=True):
        g = g / max(size, 1)
        torch.testing.assert_close(after, start - rate * g / (g.abs() + 1e-8), atol=2e-5, rtol=1e-5)
    plain = tiny_model()
    fit(plain, Recipe(1, 4, rate, 0.0, 0.0, "constant"), blocks=blocks, identity="plain")
    assert not same(plain, trained)


def test_interrupted_interventions_end_with_the_same_weights(tiny_model, architecture, fit, interrupt, tmp_path):
    """Interrupted before the first state is saved, and after it."""
    recipe = replace(RECIPE, sharpness_radius=0.1, dropout=0.3)
    full, plain = tiny_model(architecture), tiny_model(architecture)
    losses, _ = fit(full, recipe)
    fit(plain, identity="plain")
    assert not same(full, plain)
    for steps in (3, 7):
        (tmp_path / "state.safetensors").unlink(missing_ok=True)
        interrupt(steps)
        with pytest.raises(Killed):
            fit(tiny_model(architecture), recipe)
        resumed = tiny_model(architecture)
        again, said = fit(resumed, recipe)
        assert (said != []) == (steps >= 5) and again == losses and same(resumed, full)


def test_dropout_is_on_every_sublayer_and_gone_afterwards(tiny_model, architecture):
    model = tiny_model(architecture).train()
    with training._dropout(model, 0.5):
        hooked = [name for name, part in model.named_modules() if part._forward_hooks]
        torch.manual_seed(0)
        assert model(input_ids=BLOCKS).logits.isfinite().all()
    assert len(hooked) == 4  # attention and MLP of two layers
    assert not any(part._forward_hooks for part in model.modules())
    with training._dropout(model, 0.0):
        assert not any(part._forward_hooks for part in model.modules())


def test_dropout_is_in_layers_of_any_architecture_or_refused():
    """By what modules are, not by what they are called: Bloom's, Falcon's and MPT's had none of it."""
    small = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    layered = {
        **{"bloom": {"n_layer": 2, "n_head": 2}, "falcon": {}, "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2}},
        **{"gpt_neox": {"intermediate_size": 32}, "mamba": {"state_size": 4}},
    }
    for kind, options in layered.items():
        usual = small if kind != "mpt" else {"vocab_size": 61, "max_seq_len": 64}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **usual, **options)).train()
        with torch.no_grad(), training._dropout(model, 0.5):
            hooked = [name for name, part in model.named_modules() if part._forward_hooks]
            first, second = (model(input_ids=BLOCKS).logits for _ in range(2))
        assert len(hooked) == (2 if kind == "mamba" else 4), (kind, hooked)
        assert not torch.equal(first, second)

    class Flat(torch.nn.Module):
        config = LlamaConfig(num_hidden_layers=2)

    with pytest.raises(ValueError, match="dropout: Flat has no layers that it could be set in: set dropout to 0"):
        training._dropout(Flat(), 0.5).__enter__()


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_what_a_checkpoint_would_drop_of_its_own_is_switched_off_and_given_back(tiny_model, architecture):
    """Their configurations say 0.1, whatever the profile says."""
    model = tiny_model(architecture).train()
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    with torch.no_grad():
        assert not torch.equal(model(input_ids=BLOCKS).logits, model(input_ids=BLOCKS).logits)
        with training._dropout(model, 0.0):
            assert torch.equal(model(input_ids=BLOCKS).logits, model(input_ids=BLOCKS).logits)
    after = {name: dict(vars(part)) for name, part in model.named_modules()}
    for name, values in before.items():
        assert {key: value for key, value in values.items() if isinstance(value, float)} == {
            key: value for key, value in after[name].items() if isinstance(value, float)
        }


def test_a_long_gradient_is_scaled_to_the_recipes_norm(tiny_model, fit, monkeypatch):
    norms = []

    def step(self, *_):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for clip in (1e9, 0.01):
        fit(tiny_model(), replace(RECIPE, steps=1, gradient_clip=clip))
    assert norms[0] > 0.1 and norms[1] == pytest.approx(0.01, rel=1e-3)


def test_a_resumed_training_counts_the_time_before(tiny_model, fit, interrupt):
    interrupt(7)
    with pytest.raises(Killed), speed.metered():
        fit(tiny_model())
    with safe_open(fit.state, framework="pt") as file:
        spent = json.loads(file.metadata()["note"])["seconds"]
    with speed.metered() as meter:
        started = time.perf_counter()
        fit(tiny_model())
        took = time.perf_counter() - started
    assert spent > 0 and meter.seconds >= spent + took


def test_dropout_keeps_the_mean_of_what_it_drops(tiny_model):
    model = tiny_model().train()
    part = model.model.layers[0].mlp
    given = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), training._dropout(model, 0.25):
        torch.manual_seed(0)
        draws = torch.stack([part(given) for _ in range(4000)])
    with torch.no_grad():
        whole = part(given)
    assert (draws == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    # One in four left out: the mean of 4,000 draws is within √(1/3 / 4000) = 0.9 % of the value, one standard error.
    torch.testing.assert_close(draws.mean(0), whole, atol=0.06 * whole.abs().max().item(), rtol=0)


# ---- parts of a batch, precision, memory


def added(model, micro_batch: int, recipe=RECIPE, dropout: bool = False) -> tuple[float, torch.Tensor]:
    """Loss and gradient (n,) of the first seven blocks; without dropout, which GPT-2 and OPT have of their own."""
    training._training_mode(model, recipe)
    model.train(dropout)
    model.zero_grad()
    torch.manual_seed(0)
    loss = training._accumulate_gradient(model, BLOCKS[:7], recipe, micro_batch)
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
def test_parts_of_a_batch_add_up_to_its_gradient(tiny_model, architecture, micro_batch):
    """To 1e-5 of its length, in float32; the parts are of unequal sizes."""
    loss, whole = added(tiny_model(architecture), 7)
    found, parts = added(tiny_model(architecture), micro_batch)
    assert found == pytest.approx(loss, rel=1e-6)
    assert (parts - whole).norm() < 1e-5 * whole.norm()
    assert loss == pytest.approx(gradient(tiny_model(architecture), BLOCKS[:7])[0], rel=1e-6)


def test_training_in_parts_is_training(tiny_model, fit):
    whole, parts = tiny_model(), tiny_model()
    losses, _ = fit(whole)
    again, _ = fit(parts, identity="parts", micro_batch=3)
    assert again == pytest.approx(losses, rel=1e-4) and not same(whole, parts)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_made_again_give_the_same_gradient(tiny_model, architecture, dropout):
    """With dropout, by the same masks."""
    loss, kept = added(tiny_model(architecture), 7, replace(RECIPE, dropout=dropout), dropout=True)
    again = replace(RECIPE, dropout=dropout, gradient_checkpointing=True)
    found, made = added(tiny_model(architecture), 7, again, dropout=True)
    assert found == pytest.approx(loss, rel=1e-6) and (made - kept).norm() < 1e-5 * kept.norm()


def test_activations_made_again_take_less_memory(tiny_model, architecture):
    peaks = []
    for checkpointing in (False, True):
        model = tiny_model(architecture, num_hidden_layers=8)
        with memory.PeakMemory() as used:
            added(model, 7, replace(RECIPE, gradient_checkpointing=checkpointing), dropout=True)
        peaks.append(used.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_half_precision_is_that_of_products_and_not_of_weights(tiny_model, architecture, fit, interrupt, tmp_path):
    half = replace(RECIPE, precision="bfloat16")
    loss, full = added(tiny_model(architecture), 7)
    found, rounded = added(tiny_model(architecture), 7, half)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - full).norm() / full.norm() < 0.1 and found == pytest.approx(loss, rel=0.02)
    model = tiny_model(architecture)
    interrupt(6)
    with pytest.raises(Killed):
        fit(model, half)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as state:
        assert {state.get_tensor(name).dtype for name in state.keys()} == {torch.float32}  # noqa: SIM118
    resumed, whole = tiny_model(architecture), tiny_model(architecture)
    again, _ = fit(resumed, half)
    losses, _ = fit(whole, half, identity="whole")
    assert again == losses and same(resumed, whole)


def test_small_steps_survive_beside_half_precision(tiny_model, fit):
    """Weights of bfloat16 would not move: their neighbours are further apart than the steps."""
    model = tiny_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fit(model, Recipe(1, 4, 1e-5, 0.0, 0.0, "constant", precision="bfloat16"), blocks=BLOCKS[:4])
    moved = [(after - start).abs() for start, after in zip(before, model.parameters(), strict=True)]
    assert all((change > 0).any() for change in moved)
    alike = [b.bfloat16() == a.bfloat16() for b, a in zip(before, model.parameters(), strict=True)]
    assert torch.cat([each.flatten() for each in alike]).float().mean() > 0.9


def cramped(model, most: int) -> None:
    """Makes the model refuse batches of more than `most` sequences."""

    def refuse(_, __, given):
        if len(given["input_ids"]) > most:
            raise torch.OutOfMemoryError("no room")

    model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_a_part_that_does_not_fit_is_halved(tiny_model, fit):
    halved, known = tiny_model(), tiny_model()
    cramped(halved, 2)
    losses, _ = fit(halved)
    assert fit(known, identity="known", micro_batch=2)[0] == losses and same(halved, known)
    cramped(known, 0)
    with pytest.raises(MemoryError, match=r"the gradient does not fit .*: set gradient_checkpointing"):
        fit(known, identity="none")


def test_interrupted_training_goes_on_in_the_same_parts(tiny_model, fit, interrupt, tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    losses, _ = fit(whole, micro_batch=3)
    (tmp_path / "state.safetensors").unlink()
    interrupt(7)
    with pytest.raises(Killed):
        fit(tiny_model(), micro_batch=3)
    again, said = fit(resumed)
    assert said != [] and again == losses and same(resumed, whole)


def test_speed_is_counted_for_what_this_process_trained(tiny_model, fit, interrupt, monkeypatch):
    counted = []
    monkeypatch.setattr(training.speed, "count", lambda *given: counted.append(given[:2]))
    interrupt(7)
    with pytest.raises(Killed):
        fit(tiny_model())
    fit(tiny_model())
    # Steps 6 to 12, of which the first and the last have two blocks of ten tokens and the others four.
    assert counted == [("training", 10 * (2 + 5 * 4 + 2))]
