"""Parameters that are only read in a half precision are gathered in it: fewer bytes travel, and the bits are the same.

That is so under autocast. Rounding goes element by element, so that it may come before the gathering.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

aten = torch.ops.aten


def as_it_is_read(graph: fx.Graph, whole: fx.Node, position: Mapping[fx.Node, int]) -> fx.Node:
    """What is to be gathered: the parameter, or one copy in the dtype in which all of its readers want it.

    `position` is that of each node in the graph.
    """
    copies = list(whole.users)
    dtypes = {copy.meta["val"].dtype for copy in copies if _is_cast(copy)}
    if not copies or len(dtypes) != 1 or not all(map(_is_cast, copies)):
        return whole
    (dtype,) = dtypes
    if dtype.itemsize >= whole.meta["val"].dtype.itemsize:
        return whole
    first = min(copies, key=position.__getitem__)
    for copy in copies:
        if copy is not first:
            copy.replace_all_uses_with(first)
            graph.erase_node(copy)
    return first


def _is_cast(node: fx.Node) -> bool:
    return node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"} and node.meta["val"].is_contiguous()
