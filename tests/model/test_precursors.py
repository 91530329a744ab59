"""The precursors of silent collapse, by hand and against the model's own outputs."""

import math

import numpy as np
import pytest
import torch
from spectral_collapse.estimate import Estimate
from spectral_collapse.model.precursors import anchor_statistics, rare_token_coverage, representation_drift

pytestmark = pytest.mark.numerics

BLOCKS = torch.randint(0, 61, (7, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_anchors_are_the_models_own_probabilities_and_last_states(tiny_model, architecture, batch_size):
    model = tiny_model(architecture)
    with torch.no_grad():
        output = model(input_ids=BLOCKS, output_hidden_states=True)
    probabilities = output.logits.double().softmax(-1)
    expected = -(probabilities * probabilities.log()).sum(-1).mean(1)
    model.train()  # dropout must not leak into a measurement
    entropies, representations = anchor_statistics(model, BLOCKS, batch_size)
    np.testing.assert_allclose(entropies, expected, rtol=1e-5)
    torch.testing.assert_close(representations, output.hidden_states[-1].mean(1), rtol=1e-4, atol=1e-5)


def test_entropy_of_equal_probabilities_and_of_certainty(tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    np.testing.assert_allclose(anchor_statistics(model, BLOCKS, 4)[0], math.log(61), rtol=1e-6)
    with torch.no_grad():
        # All last states alike, so that one token has all the probability: its entropy is 0 and not NaN.
        model.model.norm.register_forward_hook(lambda module, given, output: torch.ones_like(output))
        model.lm_head.weight[5] = 100.0
    assert (anchor_statistics(model, BLOCKS, 4)[0] == 0).all()


def test_drift_by_hand():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[3.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    assert representation_drift(before, after).value == pytest.approx((1 + 0 + 0.5) / 3)
    still = representation_drift(before, before)
    assert still.value == 0 and still[1:] == (0, 0)


# Counts 1, 1, 2, 3, 10: the lower quartile is 1, so that tokens 7 and 8 are rare.
REFERENCE = [7, 8, 1, 1, 2, 2, 2, *[3] * 10]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [([[7, 8, 8]], 1), ([[7, 1], [7]], 0.5), ([[1, 2, 3, 9]], 0), ([[], [8]], 0.5), ([], 0), ([[]], 0)],
)
def test_coverage_of_rare_tokens_by_hand(texts, expected):
    assert rare_token_coverage(texts, REFERENCE).value == expected


def test_coverage_without_a_text_counts_the_others():
    assert rare_token_coverage([[7], [7, 8], [1]], REFERENCE) == Estimate.jackknife(1, [1, 0.5, 1])


def test_ties_of_the_quantile_are_rare_together():
    assert rare_token_coverage([[1, 2]], [1, 2, 3, 4]).value == 0.5
    assert rare_token_coverage([[3]], REFERENCE, quantile=1).value == pytest.approx(1 / 5)


def test_empty_reference_is_refused():
    with pytest.raises(ValueError, match="needs a reference with at least one token"):
        rare_token_coverage([[1]], [])
