"""Numbers as LaTeX."""

import numpy as np
import pytest
from spectral_collapse.paper import formatting


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (12.345, "12.3"),
        (2.1, "2.10"),
        (0.0012345, "0.00123"),
        (99.96, "100"),
        (12345, "12300"),
        (-0.5, "$-0.500$"),
        (123456, r"$1.23\times10^{5}$"),
        (99999, r"$1.00\times10^{5}$"),
        (-0.00099, r"$-9.90\times10^{-4}$"),
        (0.00099999, "0.00100"),
        (np.nan, "--"),
        (-np.inf, r"$-\infty$"),
    ],
)
def test_format_number(x, text):
    assert formatting.format_number(x) == text


def test_format_p():
    assert [formatting.format_p(p) for p in (0.0131, 0.0009, np.nan)] == ["0.013", "$<0.001$", "--"]


def test_format_generations():
    assert [formatting.format_generations(x) for x in (2.0, -1.5, np.inf, np.nan)] == ["2", "$-1.5$", r"$\infty$", "--"]


def test_a_result_without_an_error_stands_alone():
    result = {"entropy": 6.94, "entropy_standard_error": None, "width": 0.0277, "width_standard_error": 0.0034}
    assert formatting.pair_of(result, "entropy", "standard_error") == "6.94"
    assert formatting.pair_of(result, "width", "standard_error") == r"0.0277 $\pm$ 0.00340"
