"""Padded batches, masked labels, rows of unequal length: against the second derivative of the model's own loss."""

import numpy as np
import pytest
import torch
from spectra import foreign, frozen_blocks, tiny, vectors
from spectral_collapse import curvature

LENGTHS = (7, 4, 2, 6, 5)


def padded(side: str = "right") -> dict[str, torch.Tensor]:
    """Blocks of unequal length with their mask, as a tokenizer fills them up on one side."""
    tokens, mask = frozen_blocks(), torch.zeros(5, 7, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(length) if side == "right" else slice(7 - length, 7)] = 1
    return {"input_ids": tokens * mask, "attention_mask": mask}


def labelled() -> dict[str, torch.Tensor]:
    """Answers to prompts: the loss is of the last tokens alone, and the third block has none."""
    batch = padded()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :2] = -100
    return batch | {"labels": labels}


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model's own loss takes."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {"labels": labels} | batch


def product(model, batch, vector) -> torch.Tensor:
    """H v by double backward of the loss that transformers computes from the labels."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(model(**with_labels(batch)).loss, parameters, create_graph=True)
    pieces = vector.split([p.numel() for p in parameters])
    along = sum((g * v.view_as(g)).sum() for g, v in zip(gradient, pieces, strict=True))
    return torch.cat([g.flatten() for g in torch.autograd.grad(along, parameters, materialize_grads=True)])


def apart(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


BATCHES = {"padded": padded(), "labels": labelled()}


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gemma2"])
def test_products_are_those_of_the_models_own_loss(name, batch, micro_batch):
    model = tiny(name) if name in ("gpt2", "llama") else foreign(name)
    operator = curvature.HessianOperator(model, batch, micro_batch=micro_batch)
    v, w = vectors(operator.n, 2).to(operator.torch_dtype)
    expected = product(model, batch, v)  # transformers computes its loss in float32
    assert apart(operator @ v, expected) < 2e-5
    assert apart(operator._batched(torch.stack([w, v]))[1], expected) < 2e-5
    forms = operator.block_forms([w[None]], [v])
    assert forms.shape == (5, 1) and float(forms.mean()) == pytest.approx(float(w @ expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["gauss_newton", "fisher"])
def test_what_is_not_predicted_adds_nothing_whatever_it_holds(kind):
    model, batch = tiny("llama"), labelled()
    other = batch | {"input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 9)}
    one, two = (curvature.hessian_operator(model, given, kind=kind) for given in (batch, other))
    v = vectors(one.n, 1)[0]
    assert apart(one @ v, two @ v) < 1e-12
    whole = curvature.hessian_operator(model, batch["input_ids"], kind=kind)
    assert apart(one @ v, whole @ v) > 0.01


def test_rows_of_unequal_length_are_a_right_padded_batch():
    model, batch = tiny("llama"), padded()
    rows = [row[:length].tolist() for row, length in zip(batch["input_ids"], LENGTHS, strict=True)]
    lists, arrays = curvature.HessianOperator(model, rows), [np.array(row) for row in rows]
    v = vectors(lists.n, 1)[0]
    for given in (arrays, batch):
        assert torch.equal(curvature.HessianOperator(model, given) @ v, lists @ v)


def test_a_batch_that_is_masked_nowhere_is_the_plain_one():
    model, tokens = tiny("llama"), frozen_blocks()
    plain = curvature.HessianOperator(model, tokens)
    v = vectors(plain.n, 1)[0]
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    assert torch.equal(curvature.HessianOperator(model, given) @ v, plain @ v)


def test_signatures_take_padded_batches():
    model, batch = tiny("llama"), labelled()
    found = curvature.spectral_signature(model, batch, steps=12, probes=2)
    H = torch.stack([product(model, batch, v) for v in torch.eye(found.parameters, dtype=torch.float64)])
    assert found.lambda_max == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    of_all = curvature.population_signature(model, batch, found)
    assert of_all.population_blocks == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((5, 7), -100)}, "nothing is predicted: every label is masked"),
        ({"labels": torch.full((5, 6), 1)}, r"labels must have the shape of input_ids, \(5, 7\), not \(5, 6\)"),
        ({"labels": torch.full((5, 7), 99)}, "token 99 is beyond the model's vocabulary"),
        ({"labels": torch.full((5, 7), -1)}, "token -1 is beyond the model's vocabulary"),
        ({"attention_mask": torch.ones(5, 6)}, "attention_mask must have the shape of input_ids"),
        (
            {"position_ids": torch.ones(5, 7)},
            "a batch holds input_ids, .* not .*'position_ids'",
        ),
    ],
)
def test_batches_that_cannot_be_measured_are_refused_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        curvature.hessian_operator(tiny("llama"), padded() | change)


def test_a_batch_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a batch holds input_ids"):
        curvature.hessian_operator(tiny("llama"), {"labels": [[1, 2]]})
