"""Cost models: what each op of a graph takes in seconds and bytes. Each is a plain function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from graphopt.cost_models.costs import CostModel, OpCost

__all__ = ["COST_MODELS", "CostModel", "OpCost", "resolved_name"]


def _roofline(nodes: Sequence[Node]) -> list[OpCost]:
    from graphopt.cost_models.roofline import roofline

    return roofline(nodes)


def _profiled(nodes: Sequence[Node]) -> list[OpCost]:
    from graphopt.cost_models.profiled import profiled

    return profiled(nodes)


def _auto(nodes: Sequence[Node]) -> list[OpCost]:
    """Profiled where the ops' device is at hand, else (meta tensors, a GPU that is elsewhere) roofline."""
    from graphopt.cost_models.device_speed import at_hand
    from graphopt.cost_models.signature import node_device

    runs_here = any(at_hand(device) for device in map(node_device, nodes) if device is not None)
    return _profiled(nodes) if runs_here else _roofline(nodes)


def resolved_name(name: str, device: torch.device) -> str:
    """The cost model that prices a graph on this device: whichever "auto" is there."""
    from graphopt.cost_models.device_speed import at_hand

    return ("profiled" if at_hand(device) else "roofline") if name == "auto" else name


COST_MODELS: dict[str, CostModel] = {"roofline": _roofline, "profiled": _profiled, "auto": _auto}
