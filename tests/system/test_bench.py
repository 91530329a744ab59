"""What `make bench` has committed, and what `make bench-check` makes of other ratios."""

import json
import math
import sys

from spectral_collapse.record import paths

BENCH = paths.ROOT / "tests" / "bench"
sys.path.insert(0, str(BENCH))

import timing  # noqa: E402

RATIOS = json.loads((BENCH / "ratios.json").read_text())


def test_every_part_has_ratios_and_a_table():
    document = (paths.ROOT / "docs" / "performance.md").read_text()
    for part, ratios in RATIOS.items():
        assert ratios and all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())
        table = document.split(f"<!-- {part} -->")[1].split(f"<!-- end of {part} -->")[0]
        assert table.count("|---") >= 2, part


def test_what_is_slower_is_named():
    then = {"product": 0.5, "sampling": 1.0, "gone": 2.0}
    assert timing.slower(then, then) == []
    now = {"product": 0.5 * (1 + timing.TOLERANCE) + 0.01, "sampling": 0.2, "new": 9.0}
    told = timing.slower(now, then)
    assert [line.split(":")[0] for line in told] == ["product", "gone"]
