"""MixUp and CutMix: against torch's Beta and torchvision's formulas, and the kernel against the reference."""

import pytest
import torch
from scipy import stats

from fastcifar.augment import CutMix, MixUp
from fastcifar.augment.philox import philox4x32
from fastcifar.augment.transforms.mixing import cut_mix_boxes, symmetric_beta


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_weights_are_beta_distributed(alpha):
    words = philox4x32(1, torch.arange(20_000), 0, 0)
    weights = symmetric_beta(words[0], words[1], alpha).numpy()
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cut_mix_boxes_are_torchvisions():
    words = philox4x32(1, torch.arange(500), 0, 0)
    weight = torch.linspace(0, 1, 500, dtype=torch.float64)
    boxes = cut_mix_boxes(words, weight, (20, 33))
    for box, row, column, lam in zip(boxes, words[0] * 20 >> 32, words[1] * 33 >> 32, weight, strict=True):
        r = 0.5 * (1.0 - lam.item()) ** 0.5
        half_w, half_h = int(r * 33), int(r * 20)
        x1, y1 = max(column.item() - half_w, 0), max(row.item() - half_h, 0)
        x2, y2 = min(column.item() + half_w, 33), min(row.item() + half_h, 20)
        assert box.tolist() == [y1, x1, y2 - y1, x2 - x1]


@pytest.mark.parametrize("transform", [MixUp(0.4), CutMix(1.0)])
def test_the_kernel_equals_the_reference(check_kernel, transform):
    check_kernel(transform)
