"""The models that a recipe can name."""

from torch import nn

from fastcifar.models.resnet import ResNet, ResNetConfig

ModelConfig = ResNetConfig
"""The configuration of any model; a union once there are several."""

MODELS: dict[str, type[ModelConfig]] = {"resnet": ResNetConfig}
"""Name in the recipe's `[model]` table -> dataclass of that table."""


def build_model(config: ModelConfig) -> nn.Module:
    """Build a newly initialised model, images (B, C, H, W) to logits (B, K), in float32 on the CPU.

    >>> build_model(ResNetConfig(num_classes=100))
    """
    return ResNet(config)
