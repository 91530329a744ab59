"""Batches that fit: peaks against what is known to be there, and results that do not depend on the batch."""

import pytest
import torch
from spectral_collapse import generate, memory, train
from spectral_collapse.curvature import memory as free

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
    assert free.available_memory("cuda") == 140
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**20)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**19)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free.available_memory("mps") == 2**19


@pytest.mark.parametrize(
    ("limit", "fixed", "each", "expected"),
    [(16, 0, 100, 16), (16, 0, 101, 8), (16, 1, 100, 8), (16, 1300, 100, 2), (16, 1599, 100, 1), (3, 1400, 100, 2)],
)
def test_largest_half_that_fits(room, limit, fixed, each, expected):
    room(1600)
    assert memory.fitting(limit, fixed, each, CPU) == expected


def peak(model, sequences: int, recipe: train.Recipe) -> int:
    """Of a part of a batch that is not its first."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with memory.PeakMemory() as used:
        train._add_gradient(model, BLOCKS[:sequences], recipe, sequences)
    return used.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_and_two_sequences_tell_what_all_take(tiny_model, architecture, room, checkpointing):
    """The batch found fits, by the peak of that batch, and twice as many would not have; to 5 %."""
    recipe = train.Recipe(1, 16, 1e-2, 0.0, 0.0, "constant", gradient_checkpointing=checkpointing)
    model = tiny_model(architecture)
    train._learn(model, recipe)
    peaks = {sequences: peak(model, sequences, recipe) for sequences in (4, 8)}
    moments = 12 * sum(parameter.numel() for parameter in model.parameters())
    state = torch.get_rng_state()
    for size, expected in ((1.05 * peaks[4], 4), (0.95 * peaks[8], 4), (2**40, 16), (1, 1)):
        room(size + moments)
        assert train.fitting_batch(model, BLOCKS, recipe) == expected
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_sequences_that_do_not_fit_leave_one(room):
    def work(sequences):
        if sequences > 1:
            raise torch.OutOfMemoryError

    room(2**40)
    assert memory.measured_batch(work, 16, CPU) == 1


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
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 8}
    whole = generate.sample(model, prompts, list(range(8)), 6, **options)
    room(3 * memory.sampling_bytes(model, 3, 6))
    assert generate.sample(model, prompts, list(range(8)), 6, **options) == whole
    assert sizes == [8, 2, 2, 2, 2]
