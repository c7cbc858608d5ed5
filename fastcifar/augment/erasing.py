"""Random erasing as a module that replaces torchvision's, on CUDA by one Triton kernel.

    import fastcifar as fc

    erase = fc.RandomErasing(p=0.5, scale=(0.02, 0.2), mean=0.5, std=0.5)
    images = erase(images)  # (B, 3, 32, 32) uint8 -> normalised, erased, bfloat16

`erasing_reference` holds the rule.
"""

from collections.abc import Sequence
from functools import cache

import torch

from fastcifar.augment import erasing_reference, transforms
from fastcifar.augment.erasing_reference import Parameters
from fastcifar.augment.philox import MASK
from fastcifar.runtime.compiler import missing_for_kernels
from fastcifar.runtime.errors import UserError

DTYPES = torch.float32, torch.float16, torch.bfloat16


def _erase(images: torch.Tensor, out: torch.Tensor, state: torch.Tensor, parameters: Parameters) -> None:
    if _kernel_runs_on(images.device):
        from fastcifar.augment import erasing_fused  # not at the top: Triton may not be installed

        return erasing_fused.erase_batch(images, out, state, parameters)
    worker = torch.utils.data.get_worker_info()
    if worker is not None:  # every DataLoader worker has a copy of the module, and from torch a new seed every epoch
        state = state ^ torch.tensor([worker.seed & MASK, 0], device=state.device)
    return erasing_reference.erase_batch(images, out, state, parameters)


@cache
def _kernel_runs_on(device: torch.device) -> bool:
    return device.type == "cuda" and not missing_for_kernels(device, interpreter=True)


def _memory_format(images: torch.Tensor) -> torch.memory_format:
    """Return channels-last for images that are only that, contiguous for all others."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@torch.library.custom_op("fastcifar::random_erasing", mutates_args=())
def _random_erasing(
    images: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    layout = _memory_format(images)
    out = torch.empty_like(images, dtype=dtype, memory_format=layout)
    parameters = Parameters(p, tuple(scale), tuple(ratio), tuple(value), count, tuple(mean), tuple(std))
    _erase(images.contiguous(memory_format=layout), out, state, parameters)
    return out


@_random_erasing.register_fake
def _(images: torch.Tensor, *others: object) -> torch.Tensor:
    return torch.empty_like(images, dtype=others[-1], memory_format=_memory_format(images))


@torch.library.custom_op("fastcifar::random_erasing_", mutates_args=("images",))
def _random_erasing_(
    images: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
) -> None:
    _erase(images, images, state, Parameters(p, tuple(scale), tuple(ratio), tuple(value), count))


class BatchRandomErasing(torch.nn.Module):
    """torchvision's RandomErasing for a whole batch, each image with its own draws, both in training and in evaluation.

    Its seed and the number of calls are a buffer, which moves to the device of the images, so that nothing synchronises
    and a captured CUDA graph makes new draws at every replay (call it once before the capture). The buffer is persistent: a
    resumed run continues where it stopped. Gradients do not pass.

    Args:
        p: probability that a box is drawn.
        scale: bounds of a box's area as a share of the image's, within 0 .. 1.
        ratio: bounds of a box's height / width, above 0.
        value: a number, one for each channel, or "random" for standard normal noise in every pixel and channel; it is not
            normalised.
        inplace: write to the images given, and only to what is erased.
        count: boxes in an image, each drawn with probability p.
        mean, std: a number or one for each channel: images become (x - mean) / std before, x in 0 .. 1 where they are uint8.
        dtype: of what is returned: float32, float16 or bfloat16. Default: the images', or bfloat16 where they are uint8.
        seed: any integer of 64 bits. Default: drawn from torch's global generator.

    Raises:
        UserError: an impossible argument, or `inplace` with another option that must make a copy.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | Sequence[float] | str = 0,
        inplace: bool = False,
        count: int = 1,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.p, self.scale, self.ratio, self.value, self.inplace, self.count = p, scale, ratio, value, inplace, count
        self.mean, self.std, self.dtype = mean, std, dtype
        _check(self)
        seed = torch.randint(2**63 - 1, ()).item() if seed is None else (seed + 2**63) % 2**64 - 2**63
        self.register_buffer("state", torch.tensor([seed, 0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Erase with new draws at every call; see `erase`."""
        erased = self.erase(images)
        self.state[1] += 1
        return erased

    def erase(self, images: torch.Tensor) -> torch.Tensor:
        """Erase with the draws of the next call of the module, and do not count this as a call.

        Args:
            images: (B, C, H, W), or (C, H, W) for one image; float32, float16 or bfloat16, or uint8 where the module
                normalises; contiguous, channels-last or, more slowly, of any strides.

        Returns:
            The same shape; contiguous or channels-last as the images; the images themselves with `inplace`.

        Raises:
            TypeError: no tensor, or one of another dtype.
            ValueError: another shape, or a number of channels that `value`, `mean` or `std` does not fit.
        """
        value, mean, std = (_numbers(v) for v in (self.value, self.mean, self.std))
        _check_images(images, value=value, mean=mean, std=std)
        if self.state.device != images.device:
            self.state = self.state.to(images.device)
        batch = images if images.ndim == 4 else images[None]
        parameters = (float(self.p), _numbers(self.scale), _numbers(self.ratio), value, self.count)
        if self.inplace:
            _random_erasing_(batch, self.state, *parameters)
        else:
            dtype = self.dtype or (torch.bfloat16 if images.dtype == torch.uint8 else images.dtype)
            batch = _random_erasing(batch, self.state, *parameters, mean, std, dtype)
        return images if self.inplace else batch.view_as(images)

    def extra_repr(self) -> str:
        names = "p", "scale", "ratio", "value", "inplace", "count", "mean", "std", "dtype"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _numbers(value: float | Sequence[float] | str | None) -> list[float]:
    """Convert one number, or one for each channel, to a list; "random" and None to an empty one."""
    if value is None or isinstance(value, str):
        return []
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


def _check(module: BatchRandomErasing) -> None:
    """Raise UserError if an argument is impossible; transforms of policies check those that they have too."""
    transforms.RandomErasing(module.p, module.scale, module.ratio, module.value)
    transforms.Normalize(module.mean, module.std)
    if type(module.count) is not int or module.count < 1:
        raise UserError(f"RandomErasing: count = {module.count}: must be a whole number of at least 1")
    if module.dtype not in (None, *DTYPES):
        raise UserError(f"RandomErasing: dtype = {module.dtype}: must be one of {', '.join(map(str, DTYPES))}")
    if module.inplace and (module.mean is not None or module.dtype is not None):
        raise UserError("RandomErasing: inplace = True: must come without mean, std and dtype, which make a copy")


def _check_images(images: torch.Tensor, **values: list[float]) -> None:
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"RandomErasing: images must be a tensor, not {type(images).__name__}")
    if images.dtype not in DTYPES and not (images.dtype == torch.uint8 and values["mean"]):
        valid = ", ".join(map(str, DTYPES))
        raise TypeError(f"RandomErasing: images of {images.dtype}: must be of {valid}, or uint8 with mean and std")
    if images.ndim not in (3, 4):
        raise ValueError(f"RandomErasing: images of shape {tuple(images.shape)}: must be (B, C, H, W) or (C, H, W)")
    channels = images.shape[-3]
    for name, numbers in values.items():
        if len(numbers) > 1 and len(numbers) != channels:
            raise ValueError(f"RandomErasing: {name} = {numbers}: has {len(numbers)} values for images of {channels} channels")


RandomErasing = BatchRandomErasing
"""`fastcifar.RandomErasing`, torchvision's by name and arguments; the one of policies is `fastcifar.augment.RandomErasing`."""
