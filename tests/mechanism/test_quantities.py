"""Every quantity of the mechanism on a case whose answer is known."""

import math

import numpy as np
import pytest
import torch
from margins import mean_is, spread_is
from spectra import Rotated
from spectral_collapse import curvature
from spectral_collapse.mechanism import activations, drift, eigenvectors, gradients, landscape, outputs, vectors
from spectral_collapse.mechanism.eigenvectors import merged_into_bulk, squared_overlaps, subspace_overlap
from spectral_collapse.mechanism.tracking import Spectrum, follow, partners

pytestmark = pytest.mark.numerics


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def blocks(seed: int = 0, count: int = 6, length: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 61, size=(count, length)))


# ---- parameter space


def test_a_vector_has_every_trainable_weight_once_in_the_order_of_the_hessian(tiny_model, architecture):
    model = tiny_model(architecture)
    weights = vectors.weights_of(model)
    operator = curvature.hessian_operator(model, blocks())
    assert len(vectors.flat(weights)) == operator.n
    torch.testing.assert_close(vectors.flat(weights), torch.cat([leaf.detach().flatten() for leaf in operator.leaves]))


def test_norms_and_cosines():
    a, b = (
        {"u": torch.tensor([3.0, 0]), "v": torch.tensor([[4.0]])},
        {"u": torch.tensor([0, 2.0]), "v": torch.zeros(1, 1)},
    )
    assert vectors.norm(a) == pytest.approx(5) and vectors.norm(a, ["u"]) == pytest.approx(3)
    assert vectors.cosine(a, a) == pytest.approx(1) and vectors.cosine(a, b) == 0
    assert math.isnan(vectors.cosine(a, b, ["v"]))


# ---- gradients


def test_the_gradient_is_that_of_the_mean_loss_whatever_the_batch(tiny_model):
    model, tokens = tiny_model(), blocks()
    loss = curvature.mean_loss(model, tokens)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for size in (1, 4, 6):
        found = gradients.gradient(model, tokens, size)
        torch.testing.assert_close(list(found.values()), list(expected), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_products_of_blocks_add_up_to_the_gradient(tiny_model):
    model, tokens = tiny_model(), blocks()
    mean = gradients.gradient(model, tokens, 3)
    squares, products = gradients.block_products(model, tokens, mean)
    assert sum(products) == pytest.approx(36 * vectors.inner(mean, mean), rel=1e-4)
    one = gradients.gradient(model, tokens[2:3], 1)
    assert squares[2] == pytest.approx(vectors.inner(one, one), rel=1e-5)


def test_a_model_that_has_diverged_is_named(tiny_model):
    model = tiny_model()
    model.get_input_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the gradient is not finite: the model has diverged"):
        gradients.gradient(model, blocks(), 2)


def test_noise_scale_of_a_linear_model_is_known_unbiased_and_its_error_right():
    """g_b = G + noise with covariance Σ: tr Σ/|G|² = 50 · 0.09/4."""
    rng, found = np.random.default_rng(0), []
    signal = np.zeros(50)
    signal[0] = 2.0
    for _ in range(400):
        g = signal + 0.3 * rng.normal(size=(40, 50))
        found.append(gradients.noise_scale((g**2).sum(1), g @ g.sum(0)))
    values = np.array([one.value for one in found])
    for quantity, truth in (("trace", 4.5), ("squared_norm", 4)):
        mean_is([getattr(one, quantity) for one in found], truth)
    mean_is(values, 1.125, slack=0.01)  # a ratio of the two: a small bias
    spread_is(values, np.mean([one.standard_error for one in found]))


def test_noise_scale_is_that_of_the_two_batch_sizes():
    g = rows(3, 12, 7).numpy() + 1
    found = gradients.noise_scale((g**2).sum(1), g @ g.sum(0))
    small, big = (g**2).sum(1).mean(), (g.mean(0) ** 2).sum()
    assert found.squared_norm == pytest.approx((12 * big - small) / 11)
    assert found.trace == pytest.approx((small - big) / (1 - 1 / 12))


def test_a_gradient_that_drowns_in_noise_has_no_scale():
    found = gradients.noise_scale([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    assert math.isnan(found.value) and math.isnan(found.standard_error) and found.squared_norm < 0
    with pytest.raises(ValueError, match="needs three blocks or more, not 2"):
        gradients.noise_scale([1.0, 1.0], [1.0, 1.0])


# ---- drift


def test_drift_by_part_and_its_alignment():
    before = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    after = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([1.0])}
    found = drift.drift(before, after, {"first": ["a"], "second": ["b"], "all": ["a", "b"]})
    assert found["first"] == (1.0, pytest.approx(0.2)) and found["second"] == (0.0, 0.0)
    assert found["all"].relative == pytest.approx(1 / math.sqrt(26))
    directions = torch.eye(10)[:3]
    assert drift.alignment(torch.eye(10)[1], directions) == (1.0, 0.3)
    assert drift.alignment(torch.eye(10)[7], directions) == (0.0, 0.3)
    assert drift.alignment(torch.ones(10), directions).share == pytest.approx(0.3)
    assert math.isnan(drift.alignment(torch.zeros(10), directions).share)


def test_a_random_drift_has_its_share_by_chance():
    q, _ = torch.linalg.qr(rows(0, 400, 20))
    found = [drift.alignment(rows(seed, 400), q.T.contiguous()) for seed in range(1, 400)]
    mean_is([one.share for one in found], found[0].by_chance)


# ---- activations


def test_planted_rank_is_found_by_both_definitions():
    basis, _ = torch.linalg.qr(rows(1, 30, 5))
    orthogonal, _ = torch.linalg.qr(rows(2, 500, 6) - rows(2, 500, 6).mean(0))
    ratio, entropy = activations.effective_ranks(orthogonal[:, :5] @ basis.T + 3)
    assert ratio == pytest.approx(5, rel=0.02) and entropy == pytest.approx(5, rel=0.02)
    scaled = rows(4, 200_000, 3) * torch.tensor([2.0, 1.0, 1.0])
    ratio, entropy = activations.effective_ranks(scaled)
    assert ratio == pytest.approx(36 / 18, rel=0.02)
    shares = np.array([4, 1, 1]) / 6
    assert entropy == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=0.02)
    assert all(map(math.isnan, activations.effective_ranks(torch.full((8, 3), 0.7))))


def test_anisotropy_of_known_directions():
    assert activations.anisotropy(rows(0, 3000, 40)) == pytest.approx(0, abs=1e-3)
    assert activations.anisotropy(torch.ones(5, 3) * torch.arange(1, 6)[:, None]) == pytest.approx(1)
    assert activations.anisotropy(torch.tensor([[1.0, 0], [0, 1.0], [0, 0]])) == pytest.approx(0)
    few = rows(5, 6, 4)
    pairs = torch.nn.functional.cosine_similarity(few[:, None], few[None], dim=-1)
    assert activations.anisotropy(few) == pytest.approx((pairs.sum().item() - 6) / 30)
    assert math.isnan(activations.anisotropy(torch.zeros(4, 2)))


def test_debiased_cka_is_1_for_rotations_0_for_strangers_and_agrees_with_gram_matrices():
    X, Y = rows(0, 60, 20), rows(1, 60, 25)
    turn, _ = torch.linalg.qr(rows(2, 20, 20))
    assert activations.debiased_cka(X, 3 * X @ turn + 7) == pytest.approx(1)
    strangers = [activations.debiased_cka(rows(s, 60, 20), rows(s + 500, 60, 25)) for s in range(60)]
    mean_is(strangers, 0)
    # Song et al. 2012, eq. 5, with both matrices.
    n, ones = 60, torch.ones(60, dtype=torch.float64)

    def hsic(A, B):
        K, L = (M - torch.diag(torch.diag(M)) for M in (A @ A.T, B @ B.T))
        cross = ones @ K @ ones * (ones @ L @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ K @ L @ ones)
        return torch.trace(K @ L) + cross

    expected = hsic(X, Y) / (hsic(X, X) * hsic(Y, Y)).sqrt()
    assert activations.debiased_cka(X, Y) == pytest.approx(expected.item(), abs=1e-10)
    with pytest.raises(ValueError, match="the same four inputs or more: got 3 and 3"):
        activations.debiased_cka(X[:3], Y[:3])


def test_activations_are_the_hidden_states_of_every_layer(tiny_model):
    model, tokens = tiny_model(), blocks()
    found = activations.activations(model, tokens, 4)
    with torch.no_grad():
        expected = model(input_ids=tokens, output_hidden_states=True).hidden_states
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.flatten(0, 1), rtol=1e-4, atol=1e-5)


# ---- outputs


def test_rare_tokens_hold_their_share_and_no_more():
    text = torch.tensor([0] * 50 + [1] * 40 + [2] * 6 + [3] * 3 + [4])
    assert outputs.rare_tokens(text, 6, 0.05).tolist() == [False, False, False, True, True, True]
    assert outputs.rare_tokens(text, 6, 0.1).tolist() == [False, False, True, True, True, True]
    with pytest.raises(ValueError, match="no token of the real text is rare"):
        outputs.rare_tokens(text, 5, 0.005)


def test_a_perfectly_calibrated_model_has_only_the_error_of_counting():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, size=200_000)
    # Of 15 bins of 13,333: each counts to within 0.0035 on average, and the mean of their sizes is 0.0028 ± 0.0005.
    assert outputs.calibration_error(confidence, rng.random(200_000) < confidence) < 0.006
    assert outputs.calibration_error(confidence, rng.random(200_000) < confidence**2) > 0.1
    constant = np.full(1000, 0.9)
    assert outputs.calibration_error(constant, np.arange(1000) % 2) == pytest.approx(0.4, abs=0.01)
    with pytest.raises(ValueError, match="14 predictions do not fill 15 bins"):
        outputs.calibration_error(np.ones(14), np.ones(14))


def test_mass_on_rare_tokens_is_relative_to_their_frequency():
    rare = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0.0]])
    found = outputs.rare_mass_ratio(np.full((3, 4), 0.125), rare)
    assert found == pytest.approx((0.5, 0.5, 0.5))  # the same without any block
    assert math.isnan(outputs.rare_mass_ratio(np.ones((2, 2)), np.zeros((2, 2))).value)


def test_predictions_are_those_of_the_model(tiny_model):
    model, tokens = tiny_model(), blocks()
    rare = torch.zeros(61, dtype=torch.bool)
    rare[tokens[0, 3]] = True
    found = outputs.predictions(model, tokens, rare, 4)
    with torch.no_grad():
        p = model(input_ids=tokens).logits[:, :-1].softmax(-1).double()
    np.testing.assert_allclose(found.entropy, -(p * p.log()).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(found.rare_mass, p[..., tokens[0, 3]], rtol=1e-4)
    np.testing.assert_allclose(found.confidence, p.max(-1).values, rtol=1e-4)
    assert found.rare[0, 2] == 1 and (found.correct == (p.argmax(-1) == tokens[:, 1:]).numpy()).all()


# ---- landscape


def test_directions_have_the_lengths_of_the_filters_and_leave_vectors_alone(tiny_model):
    weights = vectors.weights_of(tiny_model())
    found = landscape.filter_normalised(weights, 1, "x")
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            torch.testing.assert_close(found[name].norm(dim=1), tensor.norm(dim=1))
        else:
            assert not found[name].any()
    again, other = (landscape.filter_normalised(weights, seed, "x") for seed in (1, 2))
    assert vectors.cosine(found, again) == pytest.approx(1) and abs(vectors.cosine(found, other)) < 0.1


def test_slices_and_lines_of_a_quadratic():
    def loss(w):
        return float(w["x"][0] ** 2 + 4 * w["x"][1] ** 2)

    origin, e, f = ({"x": torch.tensor(x)} for x in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    offsets = [-1.0, 0.0, 1.0]
    assert landscape.plane(loss, origin, e, f, offsets) == [[5, 1, 5], [4, 0, 4], [5, 1, 5]]
    places = [0.0, 0.25, 0.5, 1.0]
    along = landscape.line(loss, origin, {"x": torch.tensor([2.0, 0.0])}, places)
    assert along == [0, 0.25, 1, 4]
    assert landscape.barrier(places, along) == pytest.approx(-0.75)  # convex
    assert landscape.barrier([0, 0.5, 1], [1, 3, 2]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="both ends of the line"):
        landscape.barrier([0.5, 1], [1, 2])


def test_the_loss_of_weights_is_that_of_the_model_which_stays_as_it_is(tiny_model):
    model, other, tokens = tiny_model(), tiny_model(seed=1), blocks()
    loss = landscape.loss_of(model, tokens)
    before = vectors.weights_of(model)
    with torch.no_grad():
        expected = curvature.mean_loss(other, tokens).item()
    assert loss(vectors.weights_of(other)) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(vectors.weights_of(model), before)
    assert loss({name: torch.full_like(tensor, math.nan) for name, tensor in before.items()}) == math.inf


# ---- eigenvectors


def test_ritz_pairs_are_the_leading_eigenpairs_largest_magnitude_first():
    operator = Rotated(np.append(np.random.default_rng(0).normal(scale=0.1, size=195), [9.0, -7.0, 5.0, 4.0, 3.0]))
    found = eigenvectors.ritz_pairs(operator, 40, 5, seed=1)
    np.testing.assert_allclose(found.values, [9, -7, 5, 4, 3], rtol=1e-6)
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert (operator.matvec(vector) - value * vector).norm() < 1e-3
        assert vector.norm().item() == pytest.approx(1, abs=1e-4)
    assert found.residuals.max() < 1e-3
    assert len(eigenvectors.ritz_pairs(Rotated(np.array([2.0, 1.0])), 40, 5, seed=1).values) == 2


def turned(angle: float, n: int = 12) -> torch.Tensor:
    """The first three unit vectors, the first turned towards the fifth by an angle."""
    q = torch.eye(n, dtype=torch.float64)[:3].clone()
    q[0, 0], q[0, 4] = math.cos(angle), math.sin(angle)
    return q


def test_overlaps_partners_and_subspaces_of_planted_rotations():
    start, after = turned(0), turned(0.3)[[2, 0, 1]]
    overlaps = squared_overlaps(start, after)
    np.testing.assert_allclose(overlaps[0], [0, math.cos(0.3) ** 2, 0], atol=1e-12)
    assert partners(overlaps).tolist() == [1, 2, 0]
    assert subspace_overlap(overlaps) == pytest.approx((2 + math.cos(0.3) ** 2) / 3)
    assert partners(overlaps[:, :2]).tolist() == [1, -1, 0]
    # Greatest in sum, not one after the other: a greedy choice would take 0.6 and then 0.
    assert partners(np.array([[0.6, 0.5], [0.5, 0.0]])).tolist() == [1, 0]


class Planted:
    """H with chosen eigenpairs above a bulk of 0.1, n = 12."""

    def __init__(self, values: list[float], q: torch.Tensor):
        self.matrix = 0.1 * torch.eye(12, dtype=torch.float64)
        for value, u in zip(values, q, strict=True):
            self.matrix += (value - 0.1) * torch.outer(u, u)

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.matrix @ v


def spectra(*generations: tuple[list[float], torch.Tensor]) -> list[Spectrum]:
    found, (_, start) = [], generations[0]
    before = start
    for values, q in generations:
        from_before = squared_overlaps(before, q)
        gone = merged_into_bulk(Planted(values, q), before, from_before, np.array(values))
        found.append(Spectrum(values, from_before, squared_overlaps(start, q), gone))
        before = q
    return found


def fates(*generations: tuple[list[float], torch.Tensor], count: int = 3) -> list[str]:
    last = len(generations) - 1
    return [one.fate for one in follow(spectra(*generations), count) if one.generation == last]


def test_what_stays_and_what_rescales():
    q = turned(0)
    assert fates(([9, 5, 3], q), ([9.5, 5, 2.9], q)) == ["stays"] * 3
    assert fates(([9, 5, 3], q), ([4, 6, 3], q)) == ["rescales", "stays", "stays"]
    assert fates(([9, 5, 3], q), ([-9, 5, 3], q)) == ["rescales", "stays", "stays"]


def test_what_falls_in_rank_keeps_its_identity():
    q = turned(0)
    found = follow(spectra(([9, 5, 3], q), ([5, 3, 2], q[[1, 2, 0]])), 3)
    assert [(one.fate, one.value) for one in found if one.generation == 1] == [
        ("rescales", 2), ("stays", 5), ("stays", 3),
    ]  # fmt: skip


def test_a_slow_rotation_is_followed_to_the_end():
    steps = [([9, 5, 3], turned(angle)) for angle in (0, 0.6, 1.2, math.pi / 2)]
    found = [one for one in follow(spectra(*steps), 1)]
    assert [one.fate for one in found] == ["stays", "stays", "rotates", "rotates"]
    assert found[-1].value == 9 and found[-1].overlap == pytest.approx(0, abs=1e-12)


def test_what_is_spread_over_several_others_has_rotated_and_is_followed_no_further():
    mixing = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1.0]], dtype=torch.float64) / 2
    start = torch.eye(12, dtype=torch.float64)[:4]
    values = [9, 7, 5, 3]
    found = follow(spectra((values, start), (values, mixing @ start), (values, start)), 4)
    later = [one for one in found if one.generation]
    assert {one.fate for one in later} == {"rotates"} and all(math.isnan(one.value) for one in later)


def test_what_sinks_merges_and_stays_merged():
    q, others = turned(0), torch.eye(12, dtype=torch.float64)[[1, 2, 7]]
    assert fates(([9, 5, 3], q), ([5, 3, 2], others)) == ["merges", "stays", "stays"]
    assert fates(([9, 5, 3], q), ([5, 3, 2], others), ([9, 5, 3], q))[0] == "merges"


def test_what_leaves_the_leading_space_but_is_still_sharp_has_not_merged():
    q = turned(0)
    overlaps = squared_overlaps(q, turned(1.2))
    gone = merged_into_bulk(Planted([9, 5, 0.5], turned(1.2)), q, overlaps, np.array([9, 5, 0.5]))
    assert overlaps[0].sum() < 0.5 and gone == [False, False, False]


def test_only_what_has_left_costs_a_product():
    q, products = turned(0), []

    class Counted(Planted):
        def matvec(self, v):
            products.append(v)
            return super().matvec(v)

    after = torch.eye(12, dtype=torch.float64)[[1, 2, 7]]
    assert merged_into_bulk(Counted([5, 3, 2], after), q, squared_overlaps(q, after), np.array([5, 3, 2])) == [
        True,
        False,
        False,
    ]
    assert len(products) == 1
