"""Networks in pure PyTorch: no device, dtype or memory layout inside."""

from fastcifar.models.registry import MODELS, ModelConfig, build_model
from fastcifar.models.resnet import ResNet, ResNetConfig
from fastcifar.models.speednet import SpeedNet, SpeedNetConfig

__all__ = ["MODELS", "ModelConfig", "ResNet", "ResNetConfig", "SpeedNet", "SpeedNetConfig", "build_model"]
