"""A bound is the work over a peak rate, in the unit of the case."""

import pytest
import torch

from fastcifar.augment import CutMix, Normalize, Policy, RandomCrop
from fastcifar.bench import bounds

CPU = torch.device("cpu")


def test_a_copy_is_bytes_read_and_written_over_the_bandwidth(peaks):
    bound = bounds.copy_roofline(3072, 6144, CPU)
    assert bound.value == pytest.approx(1e6)
    assert bound.of == "3,072 B read + 6,144 B written per image, copied at 9.22 GB/s"


@pytest.mark.parametrize(
    ("policy", "dtype", "words"),
    [
        (Policy((Normalize(0.5, 0.5),)), torch.bfloat16, "3,072 B read + 6,144 B written"),
        (Policy((Normalize(0.5, 0.5),)), torch.float32, "3,072 B read + 12,288 B written"),
        (Policy((RandomCrop(16),)), torch.bfloat16, "3,072 B read + 1,536 B written"),
        (Policy((CutMix(),)), torch.bfloat16, "6,144 B read + 6,144 B written"),
    ],
)
def test_a_policy_reads_uint8_and_writes_its_output(peaks, policy, dtype, words):
    assert bounds.policy_roofline(policy, dtype, CPU).of.startswith(words)


def test_a_training_step_is_six_operations_for_each_multiply_accumulate_of_each_image(peaks):
    bound = bounds.step_roofline(500_000_000, 100, CPU, "bf16")
    assert bound.value == pytest.approx(1e12 / 300e9)
    assert bound.of == "3 GFLOP per image, at the 1 TFLOP/s of a bf16 matrix product"


def test_a_run_is_training_on_some_images_and_a_forward_pass_on_others(peaks):
    bound = bounds.run_floor(500_000_000, 1000, 300, CPU, "bf16")
    assert bound.value == pytest.approx((3e9 * 1000 + 1e9 * 300) / 1e12)


def test_the_peaks_are_measured_once_per_process():
    assert bounds.peaks(CPU) is bounds.peaks(CPU)
