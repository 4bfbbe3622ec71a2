"""What bytes are of, in a reader's words: plans, reports and errors name the same kinds in the same way."""

from __future__ import annotations

_WORDS = {
    "tangents": "gradients from the loss",
    "other": "beside the model",
    "recomputed": "activations made again",
    "fetched": "activations fetched back",
}


def kind_words(kind: str) -> str:
    """A kind of bytes as it is shown; plans and JSON have the kind itself."""
    return _WORDS.get(kind, kind)
