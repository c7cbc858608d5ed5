"""The models that a recipe can name."""

from torch import nn

from fastcifar.models.resnet import ResNet, ResNetConfig
from fastcifar.models.speednet import SpeedNet, SpeedNetConfig

ModelConfig = ResNetConfig | SpeedNetConfig
"""The configuration of any model."""

MODELS: dict[str, tuple[type[ModelConfig], type[nn.Module]]] = {
    "resnet": (ResNetConfig, ResNet),
    "speednet": (SpeedNetConfig, SpeedNet),
}
"""Name in the recipe's `[model]` table -> dataclass of that table, and the module built from it."""


def build_model(config: ModelConfig) -> nn.Module:
    """Build a newly initialised model, images (B, C, H, W) to logits (B, K), in float32 on the CPU.

    A model with a method `initialize_from(images)` wants it called once before training, with images as evaluation sees them.

    >>> build_model(ResNetConfig(num_classes=100))
    """
    _, module = MODELS[config.name]
    return module(config)
