"""Pad channel counts for tensor cores with zeros, which do not change what the model computes.

A width that is not a multiple of 8 (196 in the seed model, 3 channels of an image) prevents bf16 kernels from loading 16 bytes
at once. `pad_widths` adds channels to every such convolution and BatchNorm; their weights, biases, running means and running
variances are zero. They stay exactly zero and therefore change nothing:

- Forward, a padded channel is 0 everywhere. In the images it is 0; a convolution's rows of zeros give 0; BatchNorm computes
  mean 0 and variance 0, outputs 0 * (0 + eps)^-1/2 = 0 times weight 0 plus bias 0, and updates the running statistics with 0;
  the same holds in evaluation; ReLU, pooling and the sum with a shortcut, which is 0 there too, keep 0.
- Backward, its gradient is 0. A convolution that reads it has columns of zeros for it; the head does not see it (padding is
  removed after the pooling, so dropout draws the same mask too); and the gradient 0 passes through sum, pooling, ReLU and
  BatchNorm as 0. So BatchNorm's weight and bias have gradient 0; a row of a convolution's weight gets the sum of 0 * input, a
  column the sum of gradient * 0, both 0.
- Squeeze-and-excitation's convolutions have biases, also padded with 0: the gate of a padded channel is sigmoid(0) = 0.5, and
  0.5 * 0 = 0. The gate's gradient is the sum of gradient * 0, so its weights and bias have gradient 0.
- Weight decay, momentum, Nesterov's step, Adam and a running average of the weights map gradient 0 and weight 0 to 0.

This needs convolutions without groups, BatchNorm2d, eps > 0, activations that map 0 to 0 (but for a gate's), and finite
numbers. A step costs nothing beyond the larger kernels, whereas padding the weights in the forward pass would rewrite all of
them at every step. The padded width is a function of the width alone, so both sides of a sum match without analysing the
model's graph.

Names, shapes and values of `state_dict()` are those of the unpadded model. All functions here leave an unpadded model
unchanged.
"""

import functools
from collections import Counter
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.models.summary import summarize
from fastcifar.runtime.errors import UserError

MULTIPLES = (8, 16, 32, 64)
ALIGNED = 8  # bf16 values in 16 bytes, the widest load


def padded_width(width: int, multiple: int) -> int:
    """Return `width` itself if it is aligned, 8 if it is smaller (an image's channels), else the next multiple of `multiple`.

    >>> [padded_width(width, 32) for width in (3, 48, 196)]
    [8, 48, 224]
    """
    step = multiple if width > ALIGNED else ALIGNED
    return width if width % ALIGNED == 0 else -(-width // step) * step


def pad_widths(model: nn.Module, multiple: int) -> nn.Module:
    """Pad the unaligned widths of `model` to the next multiple of 8, 16, 32 or 64, in place; returns `model`.

    Call it once, before the optimizer is built. The first convolution must read the images, and the output of the last one
    must pass through the pooling `model.pool` before the head. The model then takes images (B, C, H, W) as before, or with
    the channels of zeros already added.

    Raises:
        UserError: `multiple` is not one of the four, or padding is not known to be exact for a layer's type.
    """
    if multiple not in MULTIPLES:
        raise UserError(f"`multiple={multiple}`: must be one of {', '.join(map(str, MULTIPLES))}")
    assert not _shapes(model), "padded already"
    layers = [(name, module) for name, module in model.named_modules() if _has_channels(name, module)]
    convolutions = [layer for _, layer in layers if isinstance(layer, nn.Conv2d)]
    image_channels, features = convolutions[0].in_channels, convolutions[-1].out_channels
    round_up = functools.partial(padded_width, multiple=multiple)

    model.padded_shapes = {}  # name of a padded parameter or buffer -> its real and its padded shape
    for prefix, layer in layers:
        for name, tensor in chain(layer.named_parameters(prefix, False), layer.named_buffers(prefix, False)):
            shape = torch.Size([*map(round_up, tensor.shape[:2]), *tensor.shape[2:]])
            if shape != tensor.shape:
                model.padded_shapes[name] = tensor.shape, shape
                tensor.data = _grown(tensor.data, shape)
        for attribute in ("in_channels", "out_channels", "num_features"):
            if hasattr(layer, attribute):
                setattr(layer, attribute, round_up(getattr(layer, attribute)))

    if (padded_channels := round_up(image_channels)) != image_channels:
        model.register_forward_pre_hook(functools.partial(_pad_images, channels=image_channels, to=padded_channels))
    if round_up(features) != features:
        model.pool.register_forward_hook(functools.partial(_cut_features, channels=features))
    model.register_state_dict_post_hook(_unpad_state)
    model.register_load_state_dict_pre_hook(_pad_state)
    return model


def real_parameters(model: nn.Module) -> int:
    """Count the parameters without padding."""
    return sum(_shapes(model).get(name, (p.shape,))[0].numel() for name, p in model.named_parameters())


def unpadded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a view, without padding, of a tensor with the shape of parameter `name` (gradient, momentum); else the tensor."""
    real, padded = _shapes(model).get(name, (None, None))
    return _cut(tensor, real) if tensor.shape == padded else tensor


def padded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Invert `unpadded`: add zeros to a tensor with the unpadded shape of parameter `name`; else return the tensor."""
    real, padded = _shapes(model).get(name, (None, None))
    return _grown(tensor, padded) if tensor.shape == real else tensor


def describe_padding(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> list[str]:
    """Describe the padding, one line per width, and its cost for images of `image_shape` (C, H, W); [] without padding."""
    weights = {name: shapes for name, shapes in _shapes(model).items() if len(shapes[0]) == 4}
    if not weights:
        return []
    counts = Counter()
    for real, padded in weights.values():
        counts.update({(r, p) for r, p in zip(real[:2], padded[:2], strict=True) if r != p})
    lines = [
        f"{real} -> {padded} channels in {count} convolution{'s' if count > 1 else ''}"
        for (real, padded), count in sorted(counts.items())
    ]
    summary = summarize(model, image_shape)
    real_macs = 0.0
    for layer in summary.layers:
        real, padded = weights.get(f"{layer.name}.weight", ((1,), (1,)))
        real_macs += layer.macs * torch.Size(real).numel() / torch.Size(padded).numel()
    return [*lines, f"{summary.macs / real_macs - 1:+.1%} multiply-accumulates"]


def _has_channels(name: str, module: nn.Module) -> bool:
    """Return whether the module itself has channels to pad; refuse unknown types."""
    if isinstance(module, nn.Linear) or not any(True for _ in chain(module.parameters(False), module.buffers(False))):
        return False
    if isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return True
    raise UserError(f"cannot pad {name}, {module}: padding is exact only for Conv2d without groups and BatchNorm2d")


def _shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.Size]]:
    return getattr(model, "padded_shapes", {})


def _grown(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Pad `tensor` with zeros at the end of its dimensions, in its memory format."""
    sizes = zip(tensor.shape[::-1], shape[::-1], strict=True)
    return F.pad(tensor, [zeros for real, padded in sizes for zeros in (0, padded - real)])


def _cut(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tensor[tuple(map(slice, shape))]


def _pad_images(model: nn.Module, args: tuple[torch.Tensor], channels: int, to: int) -> torch.Tensor:
    (images,) = args
    return F.pad(images, (0, 0, 0, 0, 0, to - channels)) if images.shape[1] == channels else images


def _cut_features(pool: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, channels: int) -> torch.Tensor:
    return output[:, :channels]


def _unpad_state(model: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: dict) -> None:
    for name, (real, _) in _shapes(model).items():
        state[prefix + name] = _cut(state[prefix + name], real)


def _pad_state(
    model: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: dict, strict: bool, missing, unexpected, errors
) -> None:
    for name, (real, padded) in _shapes(model).items():
        tensor = state.get(prefix + name)
        if tensor is not None and tensor.shape == real:
            state[prefix + name] = _grown(tensor, padded)
        elif tensor is not None:  # a tensor of the padded shape would load, and fill the padding
            errors.append(f"size mismatch for {prefix + name}: {tuple(tensor.shape)}, must be {tuple(real)}.")
            del state[prefix + name]
