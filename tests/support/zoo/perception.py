"""Vision and speech models from transformers."""

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.utils.output_capturing import install_all_output_capturing_hooks

from tests.support.zoo.case import Case, seeded

CLASSES = 10


def _images(batch: int, side: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, side, side), "labels": torch.randint(0, CLASSES, (batch,))}


@seeded
def vit() -> Case:
    """A pre-norm transformer over patches."""
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=64,
        patch_size=8,
        num_labels=CLASSES,
        problem_type="single_label_classification",
    )
    return Case(ViTForImageClassification(config), kwargs=_images(8, 64))


@seeded
def convnext() -> Case:
    """Depthwise convolutions, permutes to channels-last and back, layer scale."""
    config = ConvNextConfig(
        hidden_sizes=[32, 64, 128, 256],
        depths=[2, 2, 3, 2],
        num_labels=CLASSES,
        problem_type="single_label_classification",
    )
    return Case(ConvNextForImageClassification(config), kwargs=_images(8, 64))


@seeded
def swin() -> Case:
    """Windows cut out of a map, shifted by `roll` and put back: views upon views."""
    config = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        drop_path_rate=0.0,
        num_labels=CLASSES,
        problem_type="single_label_classification",
    )
    return Case(SwinForImageClassification(config), kwargs=_images(8, 64))


@seeded
def wav2vec2() -> Case:
    """Strided convolutions over a raw wave, then a transformer.

    Layer drop and time masking are off: both decide in Python and in numpy what a graph cannot hold.
    """
    config = Wav2Vec2Config(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=384,
        conv_dim=(64, 64, 64),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=64,
        layerdrop=0.0,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        apply_spec_augment=False,
        num_labels=CLASSES,
    )
    labels = torch.randint(0, CLASSES, (4,))
    model = Wav2Vec2ForSequenceClassification(config)
    install_all_output_capturing_hooks(model.wav2vec2)  # otherwise in the first forward, under a lock: a graph break
    model.wav2vec2.feature_extractor._requires_grad = False  # it would set requires_grad on its input, a graph break
    return Case(model, kwargs={"input_values": torch.randn(4, 8000), "labels": labels})
