"""The models that a recipe can name."""

from torch import nn

from fastcifar.models.resnet import ResNet, ResNetConfig
from fastcifar.models.speednet import SpeedNet, SpeedNetConfig
from fastcifar.runtime.errors import UserError

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

    Raises:
        UserError: the model has more parameters, trainable or not, than `config.budget`, which is not 0.

    >>> build_model(ResNetConfig(num_classes=100))
    """
    _, module = MODELS[config.name]
    model = module(config)
    if config.budget:
        _check_budget(model, config.budget)
    return model


def _check_budget(model: nn.Module, budget: int) -> None:
    sizes = {name: sum(p.numel() for p in layer.parameters(recurse=False)) for name, layer in model.named_modules()}
    if (count := sum(sizes.values())) > budget:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        raise UserError(
            f"model.budget = {budget:,}: the model has {count:,} parameters; the largest layers: "
            + ", ".join(f"{name} {sizes[name]:,}" for name in largest)
        )
