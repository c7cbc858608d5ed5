"""A picture of a policy's effect: real images, one per row, the original at the left and several draws beside it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fastcifar.augment import Normalize, Policy
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import replacing

FORMATS = ".png", ".pdf", ".svg"
INCHES = 0.9  # side of one image
DPI = 150
MOST_PIXELS = 2**16  # on a side, for matplotlib


def draw_grid(
    split: Split,
    policy: Policy,
    classes: Sequence[str],
    out: Path,
    *,
    images: int,
    draws: int,
    seed: int,
    device: torch.device,
) -> None:
    """Draw the first `images` of a split unchanged, and as training sees them in epochs 0 to `draws` - 1 of `seed`.

    Raises:
        UserError: a count is out of range, or the format cannot be written.
    """
    if not 1 <= images <= len(split.labels):
        raise UserError(f"`images={images}`: must be from 1 to {len(split.labels)}, the images of the training split")
    if draws < 1:
        raise UserError(f"`draws={draws}`: must be at least 1")
    size = (draws + 1) * INCHES + 1, images * INCHES + 0.4
    for name, value, length in (("draws", draws, size[0]), ("images", images, size[1])):
        if length * DPI >= MOST_PIXELS:
            raise UserError(
                f"`{name}={value}`: too many for one picture, choose fewer than {int(MOST_PIXELS / DPI / INCHES) - 2}"
            )
    if out.suffix not in FORMATS:
        raise UserError(f"`out={out}`: must end in one of {', '.join(FORMATS)}")
    shown = split.part(0, images)
    columns = [torch.from_numpy(shown.images) / 255]
    # Without shuffling, sample i is in row i; its draws depend only on (seed, epoch, i). If the policy mixes, its partner is
    # any sample of the split.
    source, options = split if policy.mixing else shown, {"seed": seed, "device": device, "num_classes": len(classes)}
    loader = ResidentLoader(source, policy, batch_size=images, shuffle=False, **options)
    for epoch in range(draws):
        loader.set_epoch(epoch)
        columns.append(restored(loader.batch(0)[0], policy))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(images, draws + 1, squeeze=False)
    for column, (title, pictures) in enumerate(zip(["original", *map("epoch {}".format, range(draws))], columns, strict=True)):
        axes[0, column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures.numpy()):
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
    for row, label in enumerate(shown.labels):
        axes[row, 0].set_ylabel(classes[label], fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=DPI)


def restored(batch: torch.Tensor, policy: Policy) -> torch.Tensor:
    """Convert a batch (B, C, H, W) to pictures (B, H, W, C) on the CPU, without its normalisation, clipped to 0 .. 1."""
    pictures = batch.float().cpu().permute(0, 2, 3, 1)
    for transform in policy.transforms:
        if isinstance(transform, Normalize):
            pictures = pictures * torch.tensor(transform.std) + torch.tensor(transform.mean)
    return pictures.clamp(0, 1)
