"""Cutout: the square set to 0, and the kernel against the reference."""

import torch

from fastcifar.augment import Cutout


def test_cutout_is_a_square_clipped_at_the_borders(make_images, augmented):
    out = augmented(make_images(count=500).clamp(min=1), Cutout(8))
    holes = out == 0
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert heights.max() == widths.max() == 8
    assert heights.min() == widths.min() == 4  # centred on row 0: half of it is outside
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)


def test_the_kernel_equals_the_reference(check_kernel):
    check_kernel(Cutout(5))
