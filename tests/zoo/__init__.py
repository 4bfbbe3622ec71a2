"""Models to plan, run and compare: `ZOO[name]()` is a fresh `Case`."""

from collections.abc import Callable

from zoo import convolutional, language, perception, recurrent, unusual
from zoo.case import Case, differences, step

__all__ = ["ANCHORS", "ZOO", "Case", "differences", "step"]

_BUILDERS = [
    language.gpt2,
    language.bert,
    language.t5,
    language.llama,
    perception.vit,
    perception.convnext,
    perception.swin,
    perception.wav2vec2,
    convolutional.resnet50,
    convolutional.densenet,
    convolutional.unet,
    convolutional.mobilenet,
    recurrent.lstm,
    recurrent.gru,
    unusual.residual_mlp,
    unusual.mixture_of_experts,
    unusual.ema_autoencoder,
    unusual.in_place,
    unusual.shared_and_frozen,
    unusual.structured_outputs,
    unusual.autocast,
    unusual.graph_break,
]
_ANCHOR_BUILDERS = [
    language.gpt2_anchor,
    language.bert_anchor,
    convolutional.resnet50_anchor,
    convolutional.unet_anchor,
]

ZOO: dict[str, Callable[[], Case]] = {build.__name__: build for build in _BUILDERS}
"""Small models: a step takes well under a second, and activations outweigh parameters."""

ANCHORS: dict[str, Callable[[], Case]] = {build.__name__: build for build in _ANCHOR_BUILDERS}
"""The models and sizes that other planners were measured on."""
