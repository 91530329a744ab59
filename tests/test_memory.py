"""Batches that fit: peaks against what is known to be there, and results that do not depend on the batch."""

import pytest
import torch
from draws import settled
from spectral_collapse import generate, memory, train
from spectral_collapse.curvature.memory import available_memory

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


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4, 7]), (16, [1, 2, 4, 8, 16])])
def test_batches_to_choose_from(limit, sizes):
    assert memory.halves(limit) == sizes


def peak(model, sequences: int, recipe: train.Recipe) -> int:
    """Of a part of a batch that is not its first."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with memory.PeakMemory() as used:
        train._add_gradient(model, BLOCKS[:sequences], recipe, sequences)
    return used.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_batch_found_fits_and_is_at_most_half_too_small(tiny_model, architecture, room, checkpointing):
    """By its own measured peak, beside AdamW's moments and the vector of its step."""
    recipe = train.Recipe(1, 13, 1e-2, 0.0, 0.0, "constant", gradient_checkpointing=checkpointing)
    model = tiny_model(architecture)
    train._learn(model, recipe)
    sizes = memory.halves(13)
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


@pytest.mark.parametrize(("vocabulary", "prompt", "new"), [(4000, 8, 8), (61, 48, 16), (61, 4, 60)])
def test_a_sequence_takes_what_the_closed_form_says(tiny_model, architecture, vocabulary, prompt, new):
    model = tiny_model(architecture, vocabulary, num_hidden_layers=6)

    def drawing(count: int) -> int:
        with memory.PeakMemory() as used:
            generate.sample(model, [[5] * prompt] * count, [1] * count, new, temperature=1.0, top_k=0, top_p=1.0,
                            batch_size=count)  # fmt: skip
        return used.peak

    each = (drawing(12) - drawing(4)) / 8
    assert 0.9 * each < memory.sampling_bytes(model, prompt, new) < 2.5 * each


def test_texts_do_not_depend_on_the_memory(tiny_model, architecture, room, monkeypatch):
    model, real, sizes = tiny_model(architecture), generate._sample_batch, []

    def counted(model, prompts, *rest):
        sizes.append(len(prompts))
        return real(model, prompts, *rest)

    monkeypatch.setattr(generate, "_sample_batch", counted)
    prompts = [[2 + i] * (1 + i % 3) for i in range(8)]
    decoding = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    seeds = settled(model, prompts, 6, **decoding)
    whole = generate.sample(model, prompts, seeds, 6, **decoding, batch_size=8)
    sizes.clear()
    room(3 * memory.sampling_bytes(model, 3, 6))
    assert generate.sample(model, prompts, seeds, 6, **decoding, batch_size=8) == whole
    assert sizes == [2, 2, 2, 2]
