"""The claims' table and values say what was judged."""

import pandas as pd
from spectral_collapse.analysis.claims import VERDICTS
from spectral_collapse.paper import findings, results

NOT_TESTED = {"verdict": "not tested", "reason": "no recursive_carry condition", "kind": "", "compared": ""}
JUDGED = {"verdict": "supported", "reason": "", "kind": "t, 4 seeds", "compared": "recursive, since generation 1"}
VERDICTS_FOUND = pd.DataFrame(
    [
        {"id": "s2_faster", "claim": "S2 falls faster.", "source": "SIGMA", "figure": "-150.986 against -6"}
        | NOT_TESTED,
        {"id": "loss", "claim": "The loss falls.", "source": "2.1", "figure": "3.4"} | JUDGED,
    ]
).assign(value=[float("nan"), -1.0], low=[float("nan"), -1.5], high=[float("nan"), -0.5])


def test_the_table_sets_figures_verdicts_and_reasons():
    frame = results.claims(VERDICTS_FOUND)
    assert list(frame["Verdict"]) == ["not tested", "supported"] and "$-$150.986" in frame["Figure there"][0]
    assert frame["Here"][0] == "--" and r"no recursive\_carry condition" in frame["Compared; kind of interval"][0]
    assert frame["Here"][1] == "$-1.00$ [$-1.50$, $-0.500$]"
    assert "recursive, since generation 1; t, 4 seeds" in frame["Compared; kind of interval"][1]


def test_values_have_the_estimate_where_there_is_one_and_counts():
    values = findings.claims_values(VERDICTS_FOUND)
    assert values["claim.loss"] == "supported" and values["claim.loss.compared"].startswith("recursive")
    assert values["claim.s2_faster"] == "not tested" and "claim.s2_faster.estimate" not in values
    counts = {name: int(values[f"claims.{name.replace(' ', '_')}"]) for name in VERDICTS}
    assert counts == {"supported": 1, "contradicted": 0, "inconclusive": 0, "not tested": 1}
    assert values["claims.all"] == "2"
