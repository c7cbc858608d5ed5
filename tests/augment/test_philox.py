"""The generator: its published vectors, Triton's words, and the distributions made from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

import fastcifar
from fastcifar.augment import TRANSFORMS, MixUp
from fastcifar.augment.philox import Stream, below, epoch_order, normals, philox4x32, uniform
from fastcifar.augment.transforms.erasing import NOISE_STREAM

# Known answers of Random123 1.14 (kat_vectors, philox4x32-10): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_published_vectors(counter, key, expected):
    first, *rest = counter
    words = philox4x32(key[0] | key[1] << 32, torch.tensor([first]), *rest)
    assert tuple(word.item() for word in words) == expected


TRITON = """
import torch, triton, triton.language as tl
from fastcifar.augment.philox import philox4x32

@triton.jit
def kernel(out_ptr, seed, epoch, stream, N: tl.constexpr):
    lane = tl.arange(0, N)
    zero = tl.zeros((N,), tl.uint32)
    words = tl.philox(seed, lane.to(tl.uint32), zero + epoch, zero + stream, zero)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * N + lane, words[i].to(tl.int64))

out = torch.empty(4, 64, dtype=torch.int64)
seed = 0x123456789ABCDEF
kernel[(1,)](out, seed, 7, 3, N=64)
ours = torch.stack(philox4x32(seed, torch.arange(64), 7, 3))
assert torch.equal(out & 0xFFFFFFFF, ours), (out[:, :2], ours[:, :2])
"""


def test_tritons_words_are_the_same(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    script = tmp_path / "words.py"  # Triton reads a kernel's source from its file
    script.write_text(TRITON)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(fastcifar.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_counters_broadcast_and_a_tensor_epoch_equals_an_int():
    index = torch.arange(5)
    table = philox4x32(3, index[:, None], torch.tensor(4), torch.tensor([1, 2]))
    for column, stream in enumerate((1, 2)):
        for ours, theirs in zip(table, philox4x32(3, index, 4, stream), strict=True):
            assert torch.equal(ours[:, column], theirs)


def test_uniforms_are_exact_and_below_one():
    words = torch.tensor([0, 255, 256, 0xFFFFFFFF])
    assert uniform(words).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_below_reaches_both_ends_and_never_the_bound():
    words = torch.tensor([0, 0xFFFFFFFF])
    for bound in (1, 2, 9, 255, 2**31 - 1):
        assert below(words, bound).tolist() == [0, bound - 1]


def test_uniforms_normals_and_integers_have_their_distributions():
    words = philox4x32(11, torch.arange(20_000), 0, 40)
    assert stats.kstest(uniform(words[0]).numpy(), "uniform").pvalue > 1e-3
    noise = normals(words)
    assert noise.shape == (20_000, 4)
    assert all(stats.kstest(noise[:, column].numpy(), "norm").pvalue > 1e-3 for column in range(4))
    counts = torch.bincount(below(words[1], 9), minlength=9)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_an_epochs_order_is_a_permutation_of_its_seed_and_epoch():
    order = epoch_order(5, 2, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(5, 2, 1000))
    assert not torch.equal(order, epoch_order(5, 3, 1000))
    assert not torch.equal(order, epoch_order(6, 2, 1000))


def test_an_epochs_order_does_not_change_between_versions():
    assert epoch_order(0, 0, 8).tolist() == [2, 0, 5, 7, 6, 3, 4, 1]


def test_no_two_transforms_share_a_stream():
    taken = [Stream.ORDER, NOISE_STREAM, MixUp.streams[0]]
    for transform in TRANSFORMS.values():
        taken += [
            stream for stream in transform.streams if stream != MixUp.streams[0]
        ]  # which CutMix shares: one of them at most
    assert len(set(taken)) == len(taken)
    assert all(stream < 32 for transform in TRANSFORMS.values() for stream in transform.streams)


@pytest.mark.gpu
def test_the_device_does_not_matter():
    index = torch.arange(1000)
    for ours, theirs in zip(philox4x32(9, index, 1, 2), philox4x32(9, index.cuda(), 1, 2), strict=True):
        assert torch.equal(ours, theirs.cpu())
    assert torch.equal(epoch_order(1, 2, 5000), epoch_order(1, 2, 5000, "cuda").cpu())
