"""Attention as one operator, and the rotation of its queries and keys (opset 23 on)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, is_known


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[batch, length, heads × width] as [batch, heads, length, width]."""
    if x.dim() == 4:
        return x
    if not count:
        raise OnnxError("the number of heads is missing")
    return x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def _attention(
    node: OnnxNode,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Any:
    node.refuse(softcap=(0.0,), left_window_size=(-1,), right_window_size=(-1,))
    if node.wants(3) or lengths is not None:
        raise OnnxError("scores as an output, or lengths of keys as an input, are not known here")
    flat = query.dim() == 3
    query = _heads(query, node.get("q_num_heads"))
    key, value = _heads(key, node.get("kv_num_heads")), _heads(value, node.get("kv_num_heads"))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    if mask is not None and mask.shape[-1] < key.shape[2]:
        fill = False if mask.dtype is torch.bool else float("-inf")
        mask = F.pad(mask, (0, key.shape[2] - mask.shape[-1]), value=fill)
    causal = bool(node.get("is_causal", 0))
    if causal and (mask is not None or past_key is not None):
        mask, causal = _causal(query, key, mask, key.shape[2] - query.shape[2] if past_key is not None else 0), False
    shared = query.shape[1] != key.shape[1]
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask.to(query.dtype)
    y = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=node.get("scale"), enable_gqa=shared
    )
    if flat:
        y = y.transpose(1, 2).flatten(2)
    return (y, key, value, None) if len(node.wanted) > 1 else y


def _causal(query: Tensor, key: Tensor, mask: Tensor | None, offset: int) -> Tensor:
    """A mask that also hides what comes later."""
    rows = torch.arange(query.shape[2]).reshape(-1, 1) + offset
    seen = torch.arange(key.shape[2]) <= rows
    if mask is None:
        return seen
    if mask.dtype is torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, float("-inf"))


def _rotary(node: OnnxNode, x: Tensor, cosine: Tensor, sine: Tensor, places: Tensor | None = None) -> Tensor:
    flat = x.dim() == 3
    y = x.reshape(x.shape[0], x.shape[1], node.get("num_heads"), -1) if flat else x.transpose(1, 2)
    width = node.get("rotary_embedding_dim", 0) or y.shape[-1]
    if places is not None:
        if not is_known(places):
            places = places % cosine.shape[0]
        cosine, sine = F.embedding(places, cosine), F.embedding(places, sine)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    turned, rest = y[..., :width], y[..., width:]
    if node.get("interleaved", 0):
        one, two = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([one * cosine - two * sine, one * sine + two * cosine], -1).flatten(-2)
    else:
        one, two = turned.chunk(2, -1)
        turned = torch.cat([one * cosine - two * sine, one * sine + two * cosine], -1)
    y = torch.cat([turned, rest], -1) if rest.shape[-1] else turned
    return y.reshape(x.shape) if flat else y.transpose(1, 2)


ATTENTION: dict[str, Handler] = {"Attention": _attention, "RotaryEmbedding": _rotary}
