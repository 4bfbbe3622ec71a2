"""Why Dynamo captured nothing, as far as it says."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from torch._dynamo.utils import counters, get_compilation_metrics

from graphopt.graph.nodes import is_own_file


def _breaks() -> Counter[str]:
    return Counter({str(reason): count for reason, count in counters["graph_break"].items()})


@dataclass(frozen=True)
class Since:
    """A moment, to ask what Dynamo gave up from then on."""

    time_us: int = field(default_factory=lambda: time.time_ns() // 1000)
    breaks: Counter[str] = field(default_factory=_breaks)

    def given_up(self) -> str:
        """Functions that Dynamo gave up, with line and reason, or what broke a graph; "" where it says nothing."""
        frames = [each for each in get_compilation_metrics() if (each.start_time_us or 0) >= self.time_us]
        found = [
            f"{each.co_name} was given up at {each.fail_user_frame_filename}:{each.fail_user_frame_lineno} "
            f"({_short(each.fail_reason)})"
            for each in frames
            if each.fail_reason and each.fail_user_frame_filename and not is_own_file(each.fail_user_frame_filename)
        ]
        return "; ".join(dict.fromkeys(found or map(_short, _breaks() - self.breaks)))


def nothing_captured(name: str, sparse: str, since: Since) -> str:
    """Why there is no graph at all of a model of that name, and the way out; `sparse` names what is, or is ""."""
    if sparse:
        because, way_out = (
            sparse,
            ("torch.compile captures no function that reads it; make it dense, or move what reads it out of the model"),
        )
    else:
        because = since.given_up() or "torch.compile skipped its forward (TORCH_LOGS=graph_breaks shows why)"
        way_out = (
            "Where a graph cannot be cut (in a loop, `try` or `with`), torch.compile runs the function as it is, and "
            "layers of torch.nn that it calls: move what breaks out of it, or the rest into a method of its own"
        )
    return f"nothing of {name} could be captured: {because}. {way_out}"


def _short(reason: str) -> str:
    """The first line of what Dynamo says, and its explanation."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    explained = [line.removeprefix("Explanation: ") for line in lines[1:] if line.startswith("Explanation: ")]
    return ": ".join([*lines[:1], *explained[:1]])
