"""Networks in pure PyTorch: no device, dtype or memory layout inside."""

from fastcifar.models.registry import MODELS, ModelConfig, build_model
from fastcifar.models.resnet import ResNet, ResNetConfig

__all__ = ["MODELS", "ModelConfig", "ResNet", "ResNetConfig", "build_model"]
