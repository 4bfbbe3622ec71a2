"""Models to plan, run and compare: `ZOO[name]()` is a fresh `Case`.

Measured with torch 2.13.0 and transformers 5.23 on CPU, in 10^6 bytes. "Peak" is the highest that the allocator hands
out during a forward and a backward in eager (gradients among it, parameters and inputs not). "Equal" compares
`torch.compile(backend="aot_eager")` in train mode with plain eager: loss, every gradient, every buffer and the state
of the generator afterwards, bit by bit. Every model runs there.

    model               parameters   peak  graph breaks  equal
    gpt2                       3.5   48.0             0  yes
    bert                       3.6   36.2             0  yes
    t5                         5.8   53.5             0  yes
    llama                      3.2   30.2             0  yes
    llama_sdpa                 3.2   25.0             0  loss yes, gradients to 1.4e-8: transformers branches on tracing
    vit                        3.3   18.7             0  yes
    convnext                   7.1   30.4             0  yes
    swin                       0.6   15.0             0  yes
    wav2vec2                   1.9   23.4             0  yes
    resnet50                   5.9   34.7             0  yes
    densenet                   0.6   34.5             0  yes
    unet                       0.5   14.5             0  yes
    mobilenet                  0.5   40.3             0  yes
    channels_last              0.5   12.6             0  yes
    lstm                       0.3    7.8             0  yes
    gru                        0.2    7.7             0  yes
    residual_mlp               2.1   25.8             0  yes
    mixture_of_experts         0.3   12.9             0  yes
    ema_autoencoder            0.1   15.7             0  yes
    in_place                   0.1   33.6             0  yes
    shared_and_frozen          0.1   13.1             0  yes
    structured_outputs         0.1   21.0             0  yes
    autocast                   0.1   23.2             0  yes
    by_hand                    0.3   22.6             0  yes (not under backend="eager", which redraws its dropout)
    graph_break                0.5   13.7             1  yes
    gpt2_anchor               39.2  417.5             0  yes
    bert_anchor               39.5  269.7             0  yes
    resnet50_anchor          102.2  291.8             0  yes
    unet_anchor                7.8   49.4             0  yes
"""

from collections.abc import Callable

from tests.support.zoo import convolutional, language, perception, recurrent, unusual
from tests.support.zoo.case import Case, differences, step

__all__ = ["ANCHORS", "ZOO", "Case", "differences", "step"]

_BUILDERS = [
    language.gpt2,
    language.bert,
    language.t5,
    language.llama,
    language.llama_sdpa,
    perception.vit,
    perception.convnext,
    perception.swin,
    perception.wav2vec2,
    convolutional.resnet50,
    convolutional.densenet,
    convolutional.unet,
    convolutional.mobilenet,
    convolutional.channels_last,
    recurrent.lstm,
    recurrent.gru,
    unusual.residual_mlp,
    unusual.mixture_of_experts,
    unusual.ema_autoencoder,
    unusual.in_place,
    unusual.shared_and_frozen,
    unusual.structured_outputs,
    unusual.autocast,
    unusual.by_hand,
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
