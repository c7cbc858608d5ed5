"""Every installed peer does the requested work; a missing one says how to install it."""

import multiprocessing

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fastcifar import augment as p
from fastcifar.augment import Policy
from fastcifar.bench import peers
from fastcifar.bench.setting import random_split
from fastcifar.recipe import load_recipe

CPU = torch.device("cpu")
SEED = load_recipe("seed", ["train.precision=bf16"]).augment


def test_a_peer_that_is_missing_is_one_line_with_its_name_and_its_extra(monkeypatch):
    monkeypatch.setitem(peers.EXTRAS, "no_such_peer", "peers")
    with pytest.raises(
        peers.Unavailable, match=r"no_such_peer is not installed; get it with: pip install 'fastcifar\[peers\]'"
    ):
        peers.require("no_such_peer.augmentation")


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'cv2'", name="cv2"), ImportError("lib.so:\nno file")])
def test_a_peer_that_is_installed_but_broken_says_why(monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(peers.importlib, "import_module", broken)
    with pytest.raises(peers.Unavailable, match=r"kornia cannot be imported: (No module named 'cv2'|lib.so: no file)$"):
        peers.require("kornia")


def test_torchvision_has_the_policys_transforms_in_order_with_their_parameters():
    steps = peers.v2_policy(SEED, torch.bfloat16).transforms
    assert [type(step).__name__ for step in steps] == [
        *("RandomCrop", "RandomHorizontalFlip", "ColorJitter", "RandomRotation"),
        *("ToDtype", "Normalize", "RandomErasing", "ToDtype"),
    ]
    assert list(steps[0].padding) == [4] * 4
    assert list(steps[3].degrees) == [-15, 15]
    assert tuple(steps[6].scale) == (0.02, 0.2)


def test_a_policy_without_float_transforms_still_ends_in_floats():
    policy = Policy((p.RandomHorizontalFlip(),))
    steps = peers.v2_policy(policy, torch.float32).transforms
    assert [type(step) for step in steps] == [
        v2.RandomHorizontalFlip,
        v2.ToDtype,
        v2.ToDtype,
    ]


@pytest.mark.parametrize("build", [peers.pil_policy, peers.v2_policy, peers.kornia_policy])
@pytest.mark.parametrize("transform", [p.MixUp(), p.CutMix(), p.AlternatingFlip(), p.Translate(2)])
def test_a_transform_that_a_peer_lacks_is_named(build, transform):
    if build is peers.kornia_policy:
        pytest.importorskip("kornia", reason="kornia is not installed")
    with pytest.raises(peers.Unavailable, match=type(transform).__name__):
        build(Policy((transform,)), *(() if build is peers.pil_policy else (torch.bfloat16,)))


@pytest.mark.parametrize("policy", [SEED, Policy((p.Normalize(0.5, 0.5), p.RandomErasing()))])
@pytest.mark.parametrize("build", [peers.v2_policy, peers.kornia_policy])
def test_a_batch_keeps_its_shape_and_gets_the_dtype_and_is_normalised(build, policy):
    if build is peers.kornia_policy:
        pytest.importorskip("kornia", reason="kornia is not installed")
    images = torch.from_numpy(random_split(16).images).permute(0, 3, 1, 2)
    out = build(policy, torch.bfloat16)(images)
    assert (out.shape, out.dtype) == ((16, 3, 32, 32), torch.bfloat16)
    assert -1 <= out.min() < -0.5 < 0.5 < out.max() <= 1


def test_kornia_rotates_every_image_as_torchvision_does():
    pytest.importorskip("kornia", reason="kornia is not installed")
    images = torch.from_numpy(random_split(32).images).permute(0, 3, 1, 2)
    out = peers.kornia_policy(Policy((p.RandomRotation((30, 40)),)), torch.float32)(images)
    assert (out != images.float() / 255).flatten(1).any(1).all()


def test_pil_returns_an_image_in_float32():
    out = peers.pil_policy(SEED)(Image.fromarray(random_split(1).images[0]))
    assert (out.shape, out.dtype) == ((3, 32, 32), torch.float32)


def test_the_data_loader_without_shuffling_yields_every_image_once_in_order(tmp_path):
    split, policy = random_split(10), Policy(())
    loader = peers.data_loader(split, tmp_path, policy, 4, CPU, shuffle=False)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, torch.from_numpy(split.images).permute(0, 3, 1, 2) / 255)
    assert labels.tolist() == split.labels.tolist()
    assert len(multiprocessing.active_children()) == peers.CORES
    del loader
    assert not multiprocessing.active_children()


def test_the_shuffling_data_loader_drops_an_incomplete_batch(tmp_path):
    loader = peers.data_loader(random_split(10), tmp_path, SEED, 4, CPU)
    assert [tuple(images.shape) for images, _ in loader] == [(4, 3, 32, 32)] * 2


def test_ffcv_yields_whole_batches_of_normalised_images(tmp_path, without_compiling):
    from fastcifar.data.beton import write_beton

    split = random_split(10)
    write_beton(tmp_path / "a.beton", split.images, split.labels)
    batches = list(peers.ffcv_loader(tmp_path / "a.beton", 4, CPU, torch.bfloat16))
    assert [(images.shape, images.dtype, labels.shape) for images, labels in batches] == [
        ((4, 3, 32, 32), torch.bfloat16, (4,))
    ] * 2
    images = torch.cat([images for images, _ in batches])
    assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1
