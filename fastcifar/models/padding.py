"""Widths that tensor cores like: zeros are added to a model without changing what it is.

A width that is no multiple of 8 (the seed's 196, an image's 3 channels) keeps bf16 kernels from loading 16 bytes at once.
`pad_widths` stores every such convolution and BatchNorm with more channels, all of whose weights, biases, running means and
running variances are zero. They stay zero exactly, not merely nearly, and therefore change nothing:

- Forward, a padded channel is 0 everywhere. The images' are; a convolution's rows of zeros make 0; BatchNorm sees mean 0 and
  variance 0, makes 0 * (0 + eps)^-1/2 = 0 times weight 0 plus bias 0, and mixes 0 into the running statistics 0; evaluation
  likewise; ReLU, pooling and the sum with a shortcut, itself 0 there, keep 0.
- Backward, its gradient is 0. A reader that is a convolution has columns of zeros for it, the head does not see it (padding
  is cut off behind the pooling, so that dropout draws the same mask too), and 0 goes back through sum, pooling, ReLU and
  BatchNorm as 0. So BatchNorm's weight and bias have gradient 0; a row of a convolution has the sum of 0 * input, a column
  the sum of gradient * 0, which are 0.
- Weight decay, momentum, Nesterov's step, Adam and a running average of the weights make 0 of the gradient 0 and the weight 0.

This needs convolutions without groups and BatchNorm2d, eps > 0, activations that map 0 to 0, and finite numbers. A step costs
nothing beyond the wider kernels, whereas padding the weights in the forward pass would write all of them again every step.
The padded width depends on the width alone, so the two sides of a sum fit without a look at the model's graph.

Names, shapes and values of `state_dict()` are those of the unpadded model. A model without padding passes through every
function here unchanged.
"""

import functools
from collections import Counter
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.errors import UserError
from fastcifar.profiling.summary import summarize

MULTIPLES = (8, 16, 32, 64)
ALIGNED = 8  # bf16 values in 16 bytes, the widest load


def padded_width(width: int, multiple: int) -> int:
    """What `width` becomes: itself where it is aligned, 8 below 8 (an image's channels), else the next of `multiple`.

    >>> [padded_width(width, 32) for width in (3, 48, 196)]
    [8, 48, 224]
    """
    step = multiple if width > ALIGNED else ALIGNED
    return width if width % ALIGNED == 0 else -(-width // step) * step


def pad_widths(model: nn.Module, multiple: int) -> nn.Module:
    """Pad the awkward widths of `model` to the next multiple of 8, 16, 32 or 64, in place; returns `model`.

    Call it once, before the optimizer is built. The first convolution must read the images, and what the last one makes must
    pass through the pooling `model.pool` on its way to the head. The model then takes images (B, C, H, W) as before, or with
    the channels of zeros already added.

    Raises:
        UserError: `multiple` is none of the four, or a layer is of a kind for which padding is not known to be exact.
    """
    if multiple not in MULTIPLES:
        raise UserError(f"padding of widths = {multiple}: must be one of {', '.join(map(str, MULTIPLES))}")
    assert not _shapes(model), "padded already"
    layers = [(name, module) for name, module in model.named_modules() if _has_channels(name, module)]
    convolutions = [layer for _, layer in layers if isinstance(layer, nn.Conv2d)]
    image_channels, features = convolutions[0].in_channels, convolutions[-1].out_channels
    wide = functools.partial(padded_width, multiple=multiple)

    model.padded_shapes = {}  # name of a padded parameter or buffer -> its real and its padded shape
    for prefix, layer in layers:
        for name, tensor in chain(layer.named_parameters(prefix, False), layer.named_buffers(prefix, False)):
            shape = torch.Size([*map(wide, tensor.shape[:2]), *tensor.shape[2:]])
            if shape != tensor.shape:
                model.padded_shapes[name] = tensor.shape, shape
                tensor.data = _grown(tensor.data, shape)
        for attribute in ("in_channels", "out_channels", "num_features"):
            if hasattr(layer, attribute):
                setattr(layer, attribute, wide(getattr(layer, attribute)))

    if wide(image_channels) != image_channels:
        model.register_forward_pre_hook(functools.partial(_pad_images, channels=image_channels, to=wide(image_channels)))
    if wide(features) != features:
        model.pool.register_forward_hook(functools.partial(_cut_features, channels=features))
    model.register_state_dict_post_hook(_unpad_state)
    model.register_load_state_dict_pre_hook(_pad_state)
    return model


def real_parameters(model: nn.Module) -> int:
    """Number of parameters without padding."""
    return sum(_shapes(model).get(name, (p.shape,))[0].numel() for name, p in model.named_parameters())


def unpadded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The real part, as a view, of a tensor shaped as parameter `name` (its gradient, its momentum); any other as it is."""
    real, padded = _shapes(model).get(name, (None, None))
    return _cut(tensor, real) if tensor.shape == padded else tensor


def padded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpadded`: with zeros added, if it is shaped as the real part of parameter `name`."""
    real, padded = _shapes(model).get(name, (None, None))
    return _grown(tensor, padded) if tensor.shape == real else tensor


def describe_padding(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> list[str]:
    """What was padded, a line for each width, and what it costs for images of `image_shape` (C, H, W); [] for nothing."""
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
    """Whether padding concerns the module itself; refuses what it does not know."""
    if isinstance(module, nn.Linear) or not any(True for _ in chain(module.parameters(False), module.buffers(False))):
        return False
    if isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return True
    raise UserError(f"padding of widths: {name} is {module}; it is exact for Conv2d without groups and BatchNorm2d only")


def _shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.Size]]:
    return getattr(model, "padded_shapes", {})


def _grown(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`tensor` with zeros at the end of its dimensions, in its memory format."""
    return F.pad(tensor, [n for real, wide in zip(tensor.shape[::-1], shape[::-1], strict=True) for n in (0, wide - real)])


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
        elif tensor is not None:  # one of the padded shape would be loaded, and fill the padding
            errors.append(f"size mismatch for {prefix + name}: {tuple(tensor.shape)}, must be {tuple(real)}.")
            del state[prefix + name]
