"""Seeds: frozen values, because a silent change would change every text of every run."""

import numpy as np
import pytest
from margins import uniform
from spectral_collapse.estimate import generator, stable_seed, uniforms


# Leading 16 hexadecimal digits of `printf '%s' '<JSON>' | sha256sum`, halved.
@pytest.mark.parametrize(
    ("parts", "digits"),
    [
        ((1, "TinyStories", 0, 3), 0x440E39E5931AB6DD),
        ((7, "weights"), 0x4FE8FAEC35D892DC),
        ((), 0x4F53CDA18C2BAA0C),
        (("größe", -1), 0x84E04A1D4F3B926E),
    ],
)
def test_stable_seed_is_frozen(parts, digits):
    assert stable_seed(*parts) == digits // 2


def test_parts_are_told_apart():
    parts = [(1, 12), (11, 2), ("1", 12), (1, "12"), (112,), ("1", "12"), (1, 12, "")]
    assert len({stable_seed(*each) for each in parts}) == len(parts)


def test_generator_draws_are_frozen():
    assert generator(1, "documents").permutation(8).tolist() == [4, 6, 1, 7, 3, 2, 0, 5]
    expected = [0.7337459554446363, 0.5905206445727093, 0.20780894066207112]
    np.testing.assert_array_equal(uniforms([5], 3)[0], expected)


def test_row_of_uniforms_depends_on_its_seed_alone():
    seeds = [stable_seed("row", i) for i in range(6)]
    rows = uniforms(seeds, 50)
    assert rows.shape == (6, 50) and rows.dtype == np.float64
    np.testing.assert_array_equal(uniforms(seeds[::-1], 50), rows[::-1])
    np.testing.assert_array_equal(uniforms([seeds[3]], 20)[0], rows[3, :20])
    assert len(np.unique(rows)) == rows.size


def test_uniforms_are_uniform_within_and_across_rows():
    rows = uniforms([stable_seed(1, "storyworld", i, 0) for i in range(400)], 400)
    uniform(rows.ravel())
    uniform(rows[:, 0])
    # Neighbouring seeds, as the rows of one batch are, give uncorrelated rows: r² n is near χ²(1), and the mean
    # of so many of them within 0.5 % of 1 with probability 0.68.
    correlations = np.corrcoef(rows)[np.triu_indices(400, 1)]
    assert np.mean(correlations**2) * 400 == pytest.approx(1, rel=0.05)
