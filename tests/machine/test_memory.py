"""Batches that fit: peaks against what is known to be there, and results that do not depend on the batch."""

import numpy as np
import pytest
import torch
from draws import settled
from spectral_collapse.curvature import hessian_operator, spectral_signature
from spectral_collapse.curvature import memory as curvature_memory
from spectral_collapse.curvature.memory import available_memory
from spectral_collapse.machine import memory
from spectral_collapse.model import generate, train

BLOCKS = torch.randint(2, 61, (16, 48), generator=torch.Generator().manual_seed(0))
RECIPE = train.Recipe(1, 16, 1e-2, 0.0, 0.0, "constant")
CPU = torch.device("cpu")


@pytest.fixture
def room(monkeypatch):
    """Sets the free memory in bytes."""
    return lambda size: monkeypatch.setattr(memory, "available_memory", lambda _: int(size / memory.SHARE) + 1)


def test_peak_counts_every_storage_once_and_as_long_as_it_lives():
    first, second = (torch.nn.Linear(*sizes, bias=False) for sizes in ((100, 1000), (1000, 10)))
    given = torch.randn(50, 100)
    with memory.PeakMemory() as used:
        hidden = first(given)
        found = second(hidden)
        assert used.peak == 4 * (50 * 1000 + 50 * 10)
        found.view(-1)[:3].t()  # no storage of its own
        assert used.peak == 4 * (50 * 1000 + 50 * 10)
        del hidden  # kept by the graph
        total = found.sum()
        del found
        total.backward()
    gradients = 4 * (100 * 1000 + 1000 * 10)
    assert gradients < used.peak < gradients + 4 * (2 * 50 * 1000 + 3 * 50 * 10 + 4)
    with memory.PeakMemory() as used:
        for _ in range(5):
            torch.ones(1000)
    assert used.peak == 4000


def test_unused_memory_of_the_allocator_is_free(monkeypatch):
    for name, value in (("mem_get_info", (100, 0)), ("memory_reserved", 70), ("memory_allocated", 30)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert available_memory("cuda") == 140
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**20)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**19)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_memory("mps") == 2**19


def test_a_containers_cache_is_free_and_its_limit_holds_without_a_count_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(curvature_memory, "GROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, content in (("memory.max", "1000000"), ("memory.current", "900000")):
        (tmp_path / name).write_text(content + "\n")
    assert available_memory("cpu") == 100_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_anon 7\ninactive_file 600000\nactive_file 9\n")
    assert available_memory("cpu") == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory("cpu") > 700_000


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4, 7]), (16, [1, 2, 4, 8, 16])])
def test_batches_to_choose_from(limit, sizes):
    assert memory.batch_sizes(limit) == sizes


def peak(model, sequences: int, recipe: train.Recipe) -> int:
    """Of a part of a batch that is not its first."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with memory.PeakMemory() as used:
        train._accumulate_gradient(model, BLOCKS[:sequences], recipe, sequences)
    return used.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_batch_found_fits_and_is_at_most_half_too_small(tiny_model, architecture, room, checkpointing):
    """By its own measured peak, beside AdamW's moments and the vector of its step."""
    recipe = train.Recipe(1, 13, 1e-2, 0.0, 0.0, "constant", gradient_checkpointing=checkpointing)
    model = tiny_model(architecture)
    train._training_mode(model, recipe)
    sizes = memory.batch_sizes(13)
    peaks = {size: peak(model, size, recipe) for size in sizes}
    moments = 12 * sum(parameter.numel() for parameter in model.parameters())
    state, found = torch.get_rng_state(), []
    for free in (1.1 * peaks[1], 1.5 * peaks[2], 1.2 * peaks[4], 2.1 * peaks[4], 2**40):
        room(free + moments)
        found.append(train.fitting_batch(model, BLOCKS, recipe))
        assert peaks[found[-1]] <= free
        assert found[-1] == 13 or 2 * peaks[found[-1]] > free
    assert found == sorted(found) and len(set(found)) > 2 and found[-1] == 13
    room(1)
    assert train.fitting_batch(model, BLOCKS, recipe) == 1
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_what_is_bound_to_fit_is_tried(room):
    """Of a peak of 70 bytes for the weights, or 10 for each sequence."""
    tried = []

    def work(sequences):
        tried.append(sequences)
        torch.empty(max(70, 10 * sequences), dtype=torch.uint8)

    cases = [(69, 1, [1]), (139, 1, [1]), (140, 8, [1, 2, 4, 8]), (330, 32, [1, 2, 4, 8]), (32 * 70, 32, [1])]
    for free, found, trials in cases:
        room(free)
        tried.clear()
        assert (memory.measured_batch(work, 32, CPU), tried) == (found, trials)


def test_a_batch_that_does_not_fit_after_all_is_not_taken(room):
    def work(sequences):
        torch.empty(10)
        if sequences > 2:
            raise torch.OutOfMemoryError

    room(10 * 4 * 5)
    assert memory.measured_batch(work, 16, CPU) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("vocabulary", "prompt", "new"), [(4000, 8, 8), (61, 48, 16)])
def test_the_batch_of_sampling_fits_and_is_at_most_so_much_too_small(
    tiny_model, architecture, room, vocabulary, prompt, new
):
    """By the measured peaks of whole samplings. The batch is measured as if the prompt filled the text, which takes
    more than a short prompt with a long continuation, up to four times as much here."""
    model, options = tiny_model(architecture, vocabulary, num_hidden_layers=6), ((1.0, 0, 1.0), (), True)

    def drawing(count: int) -> int:
        with memory.PeakMemory() as used:
            generate._sample_batch(model, [[5] * prompt] * count, np.zeros((count, new)), None, *options)
        return used.peak

    peaks = {size: drawing(size) for size in memory.batch_sizes(16)}
    for free in (1.1 * peaks[1], 1.2 * peaks[4], 2.1 * peaks[8], 2**40):
        room(free)
        found = generate.fitting_batch(model, 16, prompt + new, True)
        assert found == 1 or peaks[found] <= free
        assert found == 16 or 8 * peaks[found] > free
    assert found == 16


def test_texts_do_not_depend_on_the_memory(tiny_model, architecture, room, monkeypatch):
    model, real, sizes = tiny_model(architecture), generate._sample_batch, []

    def counted(model, prompts, *rest):
        sizes.append(len(prompts))
        return real(model, prompts, *rest)

    prompts = [[2 + i] * (1 + i % 3) for i in range(8)]
    decoding = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    seeds = settled(model, prompts, 6, **decoding)
    whole = generate.sample(model, prompts, seeds, 6, **decoding, batch_size=8)
    with memory.PeakMemory() as used:
        real(model, [[0] * 7], np.zeros((1, 2)), None, (1.0, 0, 1.0), (), True)
    room(2.02 * used.peak)
    fits = generate.fitting_batch(model, 8, 9, True)
    assert fits in (2, 4)
    monkeypatch.setattr(generate, "_sample_batch", counted)
    assert generate.sample(model, prompts, seeds, 6, **decoding, batch_size=8) == whole
    measured = sizes[: -(8 // fits)]
    assert sizes[len(measured) :] == [fits] * (8 // fits) and max(measured) <= fits


def test_a_budget_in_bytes_may_be_written_as_a_float(tiny_model):
    """6e8 is one; the budgets here hold a few blocks at a time."""
    model = tiny_model()
    operator = hessian_operator(model, BLOCKS)
    for blocks in (1.5, 3.5):
        budget = round(blocks * operator.block_bytes())
        whole, floating = (hessian_operator(model, BLOCKS, memory_budget=size) for size in (budget, float(budget)))
        assert whole.micro_batch == floating.micro_batch == int(blocks) and type(floating.micro_batch) is int
    options = {"steps": 4, "probes": 2}
    budget = 12 * 4 * operator.n + round(2.5 * operator.block_bytes())
    one, other = (spectral_signature(model, BLOCKS, memory_budget=size, **options) for size in (budget, float(budget)))
    assert one == other
