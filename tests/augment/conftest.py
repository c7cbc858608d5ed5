"""The kernel against its specification; see `kernel_fixtures`."""

import kernel_fixtures
import pytest
import torch

from fastcifar.augment import Policy, batch

kernel_fixtures.interpreted("fastcifar.augment.erasing_fused", "fastcifar.augment.fused")
device, run_script, check_registers = kernel_fixtures.device, kernel_fixtures.run_script, kernel_fixtures.check_registers

# An ulp, since the order of operations differs, and since the interpreter truncates to bf16 and a GPU rounds.
ULP = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture(scope="module")
def make_data(device):
    """Make random images (count, H, W, C) uint8, labels in 0 .. 9, and an order, on the device."""

    def make(count, height, width, channels):
        generator = torch.Generator().manual_seed(height * width + channels)
        images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        return [t.to(device) for t in (images, labels, torch.randperm(count, generator=generator))]

    return make


@pytest.fixture(scope="module")
def check_kernel(device, make_data):
    """Compare the fused kernel with its specification, `batch.load_batch`, for some transforms; by default in every dtype."""
    from fastcifar.augment import fused

    def check(*transforms, dtypes=tuple(ULP), shape=(9, 8, 3), count=12, batch_size=8, step=0, seed=2**40 + 3, epoch=7):
        policy = Policy(transforms)
        arguments = [*make_data(count, *shape), torch.tensor([seed, epoch, step], device=device)]
        for dtype in dtypes:
            options = dict(batch_size=batch_size, policy=policy, num_classes=10, dtype=dtype)
            ours, our_targets = fused.load_batch(*arguments, **options)
            theirs, their_targets = batch.load_batch(*arguments, **options)
            assert ours.dtype == theirs.dtype
            assert ours.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours, theirs, rtol=ULP[dtype], atol=4e-6)
            torch.testing.assert_close(our_targets, their_targets, rtol=0, atol=1e-6 if policy.mixing else 0)

    return check
