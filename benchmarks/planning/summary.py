"""The table of the zoo in docs/results.md, from the matrix's JSON: one line a model.

python -m benchmarks.planning.summary benchmarks/results/matrix.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SHARES = (0.9, 0.7, 0.5, 0.4, 0.3)


def main(path: str) -> None:
    cells: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    print("| model | eager peak | 90 % | 70 % | 50 % | 40 % | 30 % | minimum | predicted / measured | gradients |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in dict.fromkeys(cell["model"] for cell in cells):
        print(line(model, [cell for cell in cells if cell["model"] == model]))


def line(model: str, cells: list[dict[str, Any]]) -> str:
    """Extra time at each share, the least share, and how far the worst prediction is off."""
    ran = [cell for cell in cells if not cell["error"]]
    at_share = {cell["share"]: f"+{cell['overhead']:.1%}" for cell in ran}
    least = cells[-1]
    ratios = [cell["predicted_bytes"] / cell["measured_bytes"] for cell in ran]
    over = [cell for cell in ran if cell["measured_bytes"] > cell["budget_bytes"]]
    equal = not any(cell["unlike_eager"] for cell in ran)
    same = not any(cell["unlike_captured"] for cell in ran)
    gradients = "bitwise eager's" if equal else "bitwise as captured" if same else "DIFFER"
    columns = [
        model + (" (OVER ITS BUDGET)" if over else ""),
        f"{least['eager_peak_bytes'] / 2**20:.1f} MiB",
        *(at_share.get(share, "–") for share in SHARES),
        f"{least['minimum_bytes'] / least['eager_peak_bytes']:.0%}: {at_share.get(None, '–')}",
        f"{min(ratios):.3f}–{max(ratios):.3f}",
        gradients,
    ]
    return "| " + " | ".join(columns) + " |"


if __name__ == "__main__":
    main(sys.argv[1])
