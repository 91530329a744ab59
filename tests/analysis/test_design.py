"""What a profile's design can show is known, and refused, before anything runs."""

import pytest
from spectral_collapse.analysis import design
from spectral_collapse.record import params


def test_limits_of_a_design_are_known_before_it_runs():
    smoke = params.load("smoke")
    assert any("no alarm, lead or rescue" in line for line in design.limits(smoke))
    many = smoke.model_copy(update={"seeds": list(range(12)), "generations": 3})
    assert design.limits(many)[-2].endswith("after Holm's correction over more than 204 metrics.")
    both = smoke.model_copy(update={"conditions": ["recursive", "fresh", "recursive_restart"]})
    assert any(line.startswith("recursive_restart: no control") for line in design.limits(both))
    with pytest.raises(ValueError, match=r"seeds: .* at least two, and there is 1"):
        design.limits(smoke.model_copy(update={"seeds": [1]}))
    with pytest.raises(ValueError, match="need 'fresh', and there is recursive, static"):
        design.limits(smoke.model_copy(update={"conditions": ["recursive", "static"]}))


def test_a_design_says_what_it_can_find_and_one_that_cannot_answer_is_refused():
    smoke = params.load("smoke")
    ten = smoke.model_copy(update={"seeds": list(range(10)), "primary": ["entropy_warns", "ratio_falls"]})
    text = design.describe(ten)
    assert "An alarm takes" in text and "Anchor entropy warns before perplexity: p ≥ 0.002, after Holm 0.0039" in text
    assert "demonstration" not in text and "demonstration" in design.describe(smoke)
    five = ten.model_copy(update={"seeds": [1, 2, 3, 4, 5]})
    with pytest.raises(
        ValueError, match=r"primary: with 5 seeds no outcome of 'entropy_warns' .* take 7 seeds or more"
    ):
        design.describe(five)
    with pytest.raises(
        ValueError, match="unknown primary hypothesis 'entropy_warn'; the nearest valid name is 'entropy"
    ):
        design.limits(ten.model_copy(update={"primary": ["entropy_warn"]}))


def test_a_lead_that_has_no_room_is_told_before():
    study = params.load("study")
    assert any("first alarm at generation 3 or later" in line for line in design.limits(study))
    with pytest.raises(ValueError, match=r"in 1 generations no run can support 'ratio_warns', .* take 2 generations"):
        design.limits(study.model_copy(update={"generations": 1}))


def test_the_command_prints_the_design_or_the_reason(capsys):
    assert design.main(["default"]) == 0
    assert "63 models" in capsys.readouterr().out
    assert design.main(["defalt"]) == 1
    assert "the nearest is 'default'" in capsys.readouterr().out
