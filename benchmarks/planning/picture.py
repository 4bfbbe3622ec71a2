"""The README's picture: memory over the steps of the demo's model, eager and planned for a third of eager's peak.

python -m benchmarks.planning.picture docs/demo.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from graphopt.api.optimize import verify_model
from graphopt.base.units import format_bytes
from graphopt.cli.demo import make_batches, make_model, step_peak, train_once
from graphopt.report.data import Report
from graphopt.report.figures import signed_percent
from graphopt.report.svg import timeline

_WIDTH, _HEAD, _DRAWING = 1000, 74, 330
#: Light and dark, as the reader has it; a picture of a page may load nothing, fonts neither.
_STYLE = """
svg{--back:#fff;--text:#17202b;--dim:#647081;--line:#e3e7ec;--chosen:#0d9488;--eager:#94a3b8;--budget:#dc2626;
--held:#475569;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){svg{--back:#0d1117;--text:#e6ebf2;--dim:#8d9aab;--line:#283241;--chosen:#2dd4bf;
--eager:#64748b;--budget:#f87171;--held:#94a3b8}}
.back{fill:var(--back)}.title{fill:var(--text);font-size:19px;font-weight:600}.note{fill:var(--dim);font-size:14px}
.grid{stroke:var(--line)}.axis{fill:var(--dim);font-size:12px}
.eager{fill:var(--eager);opacity:.2}.eager-line{fill:none;stroke:var(--eager);stroke-width:1.4}
.chosen{fill:var(--chosen);opacity:.3}.chosen-line{fill:none;stroke:var(--chosen);stroke-width:1.8}
.resident{fill:var(--held);opacity:.28}.budget{stroke:var(--budget);stroke-width:1.5;stroke-dasharray:6 4}
.budget-text{fill:var(--budget);font-size:12.5px;font-weight:600}.boundary{stroke:var(--dim);stroke-dasharray:2 4}
.guide{display:none}
"""


def demo_report() -> Report:
    """The demo's model, planned for a third of what a step of eager takes, and measured beside eager."""
    model, example = make_model(), next(make_batches())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    train_once(model, optimizer, example)  # the optimizer's state is made in the first step
    budget_bytes = step_peak(model, optimizer, example) // 3
    result = verify_model(model, example, mem_budget=budget_bytes, optimizer=optimizer, time_rounds=0)
    assert result.bitwise, "the picture says so"
    return result.report


def picture(report: Report) -> str:
    """The report's drawing under two lines of figures, as an SVG that stands alone."""
    plan, measured = report.plan, report.measured
    assert measured is not None
    title = (
        f"A GPT-2 trains in {format_bytes(measured.peak_bytes)} instead of {format_bytes(measured.eager_peak_bytes)}, "
        "with gradients equal to the bit"
    )
    note = (
        "bytes alive over one training step: eager grey, graphopt green, dark what is always there; "
        f"{signed_percent(plan.overhead)} time by the plan"
    )
    drawing = re.sub(r' data-series="[^"]*"', "", timeline(report, report.graphs[0]))
    drawing = drawing.replace("<svg ", f'<svg y="{_HEAD}" width="{_WIDTH}" height="{_DRAWING}" ', 1)
    height = _HEAD + _DRAWING
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f'<title>{title}</title><style>{_STYLE}</style><rect class="back" width="{_WIDTH}" height="{height}" rx="8"/>'
        f'<text class="title" x="20" y="34">{title}</text><text class="note" x="20" y="58">{note}</text>'
        f"{drawing}</svg>\n"
    )


def main(path: str) -> None:
    Path(path).write_text(picture(demo_report()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
