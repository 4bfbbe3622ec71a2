"""Pass: where gradients of any rank were not finite before they were compressed, no rank updates anything."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.roles import Overflow, Update, find_input, set_outputs, with_role

aten = torch.ops.aten


def heed_overflow(window: fx.GraphModule) -> bool:
    """Let the ranks' flag skip the update and lower the loss scale; True where there is one that was not heeded yet.

    The window then returns `found_inf`, with a loss scale or without.
    """
    graph = window.graph
    flag = find_input(graph, Overflow())
    updates = list(with_role(graph, Update))
    if flag is None or not updates or any(user.target is aten.maximum.default for user in flag.users):
        return False
    found = {node.kwargs.get("found_inf"): node for node in updates}
    (found_inf,) = found
    if isinstance(found_inf, fx.Node):
        with graph.inserting_after(found_inf):
            either = graph.call_function(aten.maximum.default, (found_inf, flag))
        found_inf.replace_all_uses_with(either, delete_user_cb=lambda user: user is not either)
    else:
        with graph.inserting_before(updates[0]):
            # a copy, as the flag itself is the next step's too
            either = graph.call_function(aten.maximum.default, (flag, flag))
        for node in updates:
            node.kwargs = {**node.kwargs, "found_inf": either}
        set_outputs(graph, found_inf=either)
    window.recompile()
    return True
