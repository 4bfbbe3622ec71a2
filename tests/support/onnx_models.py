"""Ten small models, and torch's exporter for them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Convolutions with batch normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, stride=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norms[0](self.one(x))), 2)
        return self.head(torch.relu(self.norms[1](self.two(x))).mean((2, 3)))


class UNet(nn.Module):
    """Down and up again, with what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.same = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.out, self.norm = nn.Conv2d(4, 2, 1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        high = F.silu(self.down(x))
        low = F.gelu(self.deep(F.avg_pool2d(high, 2)))
        joined = torch.cat([high, self.up(low)], 1)
        wide = F.interpolate(low[:, :4], scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.norm(self.same(joined)) + wide)


class Mixer(nn.Module):
    """MLP-Mixer: one block on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return (x + self.channels(self.norms[1](x))).mean(1)


class Recurrent(nn.Module):
    """An embedding, an LSTM in both directions, and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(self.words(words))[0])[0])


class ConvNext(nn.Module):
    """Convolutions by channel, layer normalisation over channels, and a scale for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.wide, self.back = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.back(F.gelu(self.wide(y)))
        return (x + y.permute(0, 3, 1, 2)).mean((2, 3))


class Mobile(nn.Module):
    """Inverted residuals with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.narrow, self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norms[1](self.depth(F.hardswish(self.norms[0](self.wide(x))))))
        y = y * F.hardsigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.narrow(y)


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1, bias=False) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * i) for i in range(4))
        self.head = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return self.head(F.avg_pool2d(x, 2).amax((2, 3)))


class FirstOutput(nn.Module):
    """A model of transformers as one that gives a tensor."""

    def __init__(self, model: nn.Module, **keywords: Any) -> None:
        super().__init__()
        self.model, self.keywords = model, keywords

    def forward(self, *inputs: Tensor) -> Tensor:
        names = ("input_ids", "attention_mask") if len(inputs) > 1 else ("pixel_values",)
        named = dict(zip(names, inputs, strict=True))
        return self.model(**named, return_dict=False, **self.keywords)[0]


def vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A picture transformer."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    return FirstOutput(ViTModel(config, add_pooling_layer=False)), (torch.randn(2, 3, 8, 8),)


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """BERT with a mask."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=19, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    words = torch.randint(1, 19, (2, 6))  # the gradient of word 0, the padding, is dropped by torch alone
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    return FirstOutput(BertModel(config, add_pooling_layer=False)), (words, mask)


def gpt2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """GPT-2 with its head, whose weight is that of the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        bos_token_id=0, eos_token_id=0, vocab_size=19, n_positions=12, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    words, mask = torch.randint(0, 19, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    return FirstOutput(GPT2LMHeadModel(config), use_cache=False), (words, mask)


def picture(channels: int = 3) -> tuple[Tensor, ...]:
    """Two pictures of 8 x 8."""
    return (torch.randn(2, channels, 8, 8),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "cnn": lambda: (ConvNet(), picture()),
    "vit": vit,
    "bert": bert,
    "gpt2": gpt2,
    "unet": lambda: (UNet(), picture(2)),
    "mixer": lambda: (Mixer(), picture()),
    "lstm": lambda: (Recurrent(), (torch.randint(0, 11, (2, 4)),)),
    "convnext": lambda: (ConvNext(), picture()),
    "mobilenet": lambda: (Mobile(), picture(4)),
    "densenet": lambda: (Dense(), picture()),
}


@dataclass(frozen=True)
class Exported:
    """A model in training mode, its inputs, and its file."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    raw: bytes

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self.raw)


def export(name: str, opset: int = 17, batch: str | None = None, **options: Any) -> Exported:
    """One of the ten through torch's exporter, as it trains, without rewriting; `options` are the exporter's.

    `batch` gives dimension 0 of its inputs a name.
    """
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    file = io.BytesIO()
    if batch is not None:
        names = [f"input{number}" for number in range(len(inputs))]
        options |= {"input_names": names, "dynamic_axes": {each: {0: batch} for each in names}}
    options = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.train(), inputs, file, dynamo=False, opset_version=opset, **options)
    return Exported(model.train(), inputs, file.getvalue())
