"""Count a model's parameters, activations and multiply-accumulates per layer, on the meta device, without computing."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

MEGABYTE = 2**20
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Layer:
    """One module's call.

    Attributes:
        name: dotted path in the model.
        kind: class name.
        input_shape, output_shape: without the batch dimension.
        parameters: of the module itself, without its submodules.
        macs: multiply-accumulates for one image; counted for convolutions and linear layers.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """A model's totals for one image.

    Attributes:
        parameters, trainable: number of weights.
        parameter_mb: their size in MB of 2**20 bytes at float32.
        activation_mb: "forward/backward pass size" as torchsummary counts it: twice the float32 outputs of every module
            except containers (`nn.Sequential`, `nn.ModuleList`) and the model itself. The outputs of a residual block and of
            its last ReLU both count, although they are one tensor.
        macs: multiply-accumulates of the forward pass.
    """

    parameters: int
    trainable: int
    parameter_mb: float
    activation_mb: float
    macs: int
    layers: tuple[Layer, ...]


def summarize(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> Summary:
    """Summarise `model` for one image of `image_shape` (C, H, W); the model itself does not change."""
    model = copy.deepcopy(model).to("meta").eval()
    layers: list[Layer] = []
    for name, module in model.named_modules():
        if module is not model and not isinstance(module, nn.Sequential | nn.ModuleList):
            module.register_forward_hook(_recorder(name, layers))
    model(torch.empty(1, *image_shape, device="meta"))
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    outputs = sum(torch.Size(layer.output_shape).numel() for layer in layers)
    return Summary(
        parameters=count,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameter_mb=count * FLOAT32_BYTES / MEGABYTE,
        activation_mb=2 * outputs * FLOAT32_BYTES / MEGABYTE,
        macs=sum(layer.macs for layer in layers),
        layers=tuple(layers),
    )


def _recorder(name: str, layers: list[Layer]):
    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        shape = tuple(output.shape[1:])
        read = tuple(inputs[0].shape[1:])
        layers.append(Layer(name, type(module).__name__, read, shape, parameters, _macs(module, output)))

    return record


def _macs(module: nn.Module, output: torch.Tensor) -> int:
    """Count multiply-accumulates: a convolution uses every weight once per output position, a linear layer once."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * output.shape[2] * output.shape[3]
    return module.weight.numel() if isinstance(module, nn.Linear) else 0
