"""Count a model's parameters, activations and operations per layer, by one forward pass of an empty image on the CPU.

Operations are multiply-accumulates of convolutions and linear layers. Not counted: BatchNorm, activations, pooling, biases,
the loss, the optimizer (the matrix products of Muon included), augmentation, and what a model computes to initialise itself.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fastcifar.runtime.errors import first_line

MEGABYTE = 2**20
FLOAT32_BYTES = 4
OPERATIONS_PER_MAC = 2  # a multiplication and an addition


@dataclass(frozen=True)
class Layer:
    """One module's call.

    Attributes:
        name: dotted path in the model.
        kind: class name.
        input_shape, output_shape: without the batch dimension.
        parameters: of the module itself, without its submodules.
        macs: multiply-accumulates for one image; counted for convolutions and linear layers.
        training_macs: those of forward and backward for one image: once more for the gradient of the weights if they are
            trained, and once more for that of the input if a trained parameter lies before it.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    training_macs: int


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
        training_macs: multiply-accumulates of forward and backward pass.
    """

    parameters: int
    trainable: int
    parameter_mb: float
    activation_mb: float
    macs: int
    training_macs: int
    layers: tuple[Layer, ...]


def summarize(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> Summary:
    """Summarise `model` for one image of `image_shape` (C, H, W); the model itself does not change."""
    # Not on the meta device: its convolutions and BatchNorm import torch.compile, which takes 2.4 s (2 x EPYC, torch 2.15).
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    layers: list[Layer] = []
    for name, module in model.named_modules():
        if module is not model and not isinstance(module, nn.Sequential | nn.ModuleList):
            module.register_forward_hook(_recorder(name, layers))
    with torch.enable_grad():  # the hooks read `requires_grad`
        model(torch.zeros(1, *image_shape))
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    outputs = sum(torch.Size(layer.output_shape).numel() for layer in layers)
    return Summary(
        parameters=count,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameter_mb=count * FLOAT32_BYTES / MEGABYTE,
        activation_mb=2 * outputs * FLOAT32_BYTES / MEGABYTE,
        macs=sum(layer.macs for layer in layers),
        training_macs=sum(layer.training_macs for layer in layers),
        layers=tuple(layers),
    )


def training_flops(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Count the floating-point operations to train `model` on one image of `image_shape` (C, H, W), forward and backward.

    It is 2 per multiply-accumulate of `Summary.training_macs`; the first lines of this file say what is not counted. The model
    itself does not change.
    """
    return OPERATIONS_PER_MAC * summarize(model, image_shape).training_macs


def evaluation_flops(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Count the floating-point operations of one forward pass of one image, as `training_flops` does."""
    return OPERATIONS_PER_MAC * summarize(model, image_shape).macs


def too_small(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Return why images of `image_shape` (C, H, W) are too small for `model`; "" if they are not."""
    try:
        layers = summarize(model, image_shape).layers
    except RuntimeError as error:
        return first_line(error)
    for layer in layers:
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and layer.input_shape[1:] == (1, 1):
            return f"{layer.name} would halve 1 x 1 pixels"  # oneDNN leaves part of its bf16 gradient unset (torch 2.14)
    return ""


def _recorder(name: str, layers: list[Layer]):
    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        shape = tuple(output.shape[1:])
        read = tuple(inputs[0].shape[1:])
        macs = _macs(module, output)
        training = macs * (1 + module.weight.requires_grad + inputs[0].requires_grad) if macs else 0
        layers.append(Layer(name, type(module).__name__, read, shape, parameters, macs, training))

    return record


def _macs(module: nn.Module, output: torch.Tensor) -> int:
    """Count multiply-accumulates: a convolution uses every weight once per output position, a linear layer once."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * output.shape[2] * output.shape[3]
    return module.weight.numel() if isinstance(module, nn.Linear) else 0
