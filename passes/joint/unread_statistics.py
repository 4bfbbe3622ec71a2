"""Pass: a batch norm's backward in training is not given the running statistics, which it does not read.

AOTAutograd hands it the new ones: two more tensors for each layer that live until then.
"""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.joint import JointGraph

aten = torch.ops.aten
_RUNNING = (3, 4)
_TRAINING = 7


def unread_statistics(joint: JointGraph) -> bool:
    """Leave out running statistics where a backward uses those of the batch; True where some were."""
    changed = False
    for node in joint.graph.find_nodes(op="call_function", target=aten.native_batch_norm_backward.default):
        given = [node.args[position] for position in _RUNNING]
        if node.args[_TRAINING] is True and any(isinstance(each, fx.Node) for each in given):
            node.args = (*node.args[: _RUNNING[0]], None, None, *node.args[_RUNNING[-1] + 1 :])
            changed = True
    if changed:
        joint.module.recompile()
    return changed
