"""Padded widths: what is computed, learnt, counted and saved is that of the unpadded model, and the padding stays zero."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.models import ResNetConfig, build_model
from fastcifar.models.padding import describe_padding, pad_widths, padded, padded_width, real_parameters, unpadded
from fastcifar.optim.optimizers import OptimizerConfig, build_optimizer
from fastcifar.run.checkpoint import checkpoint_tensors, load_checkpoint, save_checkpoint
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.precision import autocast

pytestmark = pytest.mark.usefixtures("one_thread")
AWKWARD = ResNetConfig(num_classes=5, stem_channels=12, channels=(12, 20, 28), blocks=(2, 2, 1), strides=(1, 2, 2))
"""No width is aligned, nor is the head's; blocks with and without a shortcut convolution."""
GATED = {"squeeze": 4, "stochastic_depth": 0.5}
PREACTIVATION = {"block": "preactivation", **GATED}
STEPS = 50
# Kernels of two widths sum in two orders, and training lets the difference grow: after 50 steps to 3e-6 and 7e-14 at most.
TOLERANCE = {torch.float32: {"rtol": 1e-3, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


def with_gelu(model: nn.Module) -> nn.Module:
    """`model` with GELU instead of ReLU, whose gradient jumps where rounding changes a sign, the largest error in float32."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.ReLU):
            model.set_submodule(name, nn.GELU())
    return model


def pair(config: ResNetConfig, multiple: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """A model and its padded twin, channels-last."""
    torch.manual_seed(0)
    model = build_model(config)
    twin = pad_widths(copy.deepcopy(model), multiple)
    return tuple(m.to(dtype=dtype, memory_format=torch.channels_last) for m in (model, twin))


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 3, 8, 8, generator=generator, dtype=dtype).to(memory_format=torch.channels_last)
    return images, torch.randint(0, 5, (16,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, precision: str = "fp32") -> list[float]:
    """The losses of some steps, with dropout and a falling learning rate; keeps the last gradients."""
    weight, losses = next(model.parameters()), []
    model.train()
    for step in steps:
        torch.manual_seed(step)  # dropout
        images, labels = (tensor.to(weight.device) for tensor in batch(step, weight.dtype))
        optimizer.param_groups[0]["lr"].fill_(0.01 * (1 - step / STEPS))
        optimizer.zero_grad()
        with autocast(weight.device, precision):
            logits = model(images)
        loss = F.cross_entropy(logits.to(weight.dtype), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(model: nn.Module, twin: nn.Module, optimizers, tolerance) -> None:
    """Weights, BatchNorm statistics, gradients and optimizer state agree."""
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()), **tolerance)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    for name, parameter in ours.items():
        other = theirs[name]
        torch.testing.assert_close(unpadded(twin, name, other.grad), parameter.grad, **tolerance)
        for key, tensor in optimizers[0].state[parameter].items():
            torch.testing.assert_close(unpadded(twin, name, optimizers[1].state[other][key]), tensor, **tolerance)


def assert_padding_is_zero(twin: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Exactly zero, in weights, statistics, gradients and optimizer state."""
    assert twin.padded_shapes
    for name in twin.padded_shapes:
        layer, _, attribute = name.rpartition(".")
        tensor = getattr(twin.get_submodule(layer), attribute)
        state = optimizer.state[tensor].values() if optimizer and isinstance(tensor, nn.Parameter) else ()
        grad = () if tensor.grad is None else (tensor.grad,)
        for t in (tensor, *grad, *state):
            assert t.count_nonzero() == unpadded(twin, name, t).count_nonzero()


SGD, NESTEROV = OptimizerConfig(), OptimizerConfig(nesterov=True, weight_decay=0.01)


@pytest.mark.parametrize(
    ("config", "changes", "dtype"),
    [
        (SGD, {}, torch.float64),
        (SGD, {}, torch.float32),
        (NESTEROV, {}, torch.float64),
        (NESTEROV, {"block": "bottleneck"}, torch.float64),
        (NESTEROV, GATED, torch.float64),
        (NESTEROV, PREACTIVATION, torch.float64),
        (NESTEROV, {}, torch.float32),
        (OptimizerConfig(name="adam"), {}, torch.float64),
        (OptimizerConfig(name="adamw", weight_decay=0.01), {}, torch.float64),
    ],
)
def test_fifty_steps_are_those_of_the_unpadded_model(config, changes, dtype):
    model, twin = pair(replace(AWKWARD, **changes), 8, dtype)
    if dtype == torch.float32:
        model, twin = with_gelu(model), with_gelu(twin)
    optimizers = [build_optimizer(m, config) for m in (model, twin)]
    losses = [train(m, o, range(STEPS)) for m, o in zip((model, twin), optimizers, strict=True)]
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE[dtype])
    assert_same(model, twin, optimizers, TOLERANCE[dtype])
    assert_padding_is_zero(twin, optimizers[1])
    images, _ = batch(STEPS, dtype)
    torch.testing.assert_close(twin.eval()(images), model.eval()(images), **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), *(pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in ("fp32", "bf16"))],
)
@pytest.mark.parametrize("changes", [{}, PREACTIVATION], ids=["basic", "preactivation"])
def test_padding_stays_exactly_zero(changes, device, precision):
    twin = pair(replace(AWKWARD, **changes), 8, torch.float32)[1].to(device)
    optimizer = build_optimizer(twin, NESTEROV)
    train(twin, optimizer, range(STEPS), precision)
    assert_padding_is_zero(twin, optimizer)


@pytest.mark.parametrize("multiple", [8, 16, 32, 64])
def test_every_multiple_computes_the_same(multiple):
    model, twin = pair(AWKWARD, multiple)
    images, _ = batch(0)
    torch.manual_seed(0)
    logits = model(images)
    torch.manual_seed(0)
    torch.testing.assert_close(twin(images), logits, **TOLERANCE[torch.float64])
    widths = {n for m in twin.modules() if isinstance(m, nn.Conv2d) for n in (m.in_channels, m.out_channels)}
    assert widths == {8, padded_width(12, multiple), padded_width(20, multiple), padded_width(28, multiple)}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_seed_model_trains_the_same(dtype):
    model, twin = pair(ResNetConfig(), 8, dtype)
    if dtype == torch.float32:
        model, twin = with_gelu(model), with_gelu(twin)
    optimizers = [build_optimizer(m, OptimizerConfig()) for m in (model, twin)]
    losses = [train(m, o, range(3)) for m, o in zip((model, twin), optimizers, strict=True)]
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE[dtype])
    assert_same(model, twin, optimizers, TOLERANCE[dtype])
    assert_padding_is_zero(twin, optimizers[1])


def test_a_run_moves_from_padded_to_unpadded_and_to_another_multiple(tmp_path):
    """Training resumes from a checkpoint and optimizer state of another width as if never stopped."""
    model, twin = pair(AWKWARD, 8)
    optimizers = [build_optimizer(m, NESTEROV) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        train(m, optimizer, range(10))
    save_checkpoint(tmp_path / "padded.safetensors", checkpoint_tensors(twin), AWKWARD)
    saved = load_checkpoint(tmp_path / "padded.safetensors").section("model")
    momentum = {
        name: unpadded(twin, name, optimizers[1].state[parameter]["momentum_buffer"]).clone()
        for name, parameter in twin.named_parameters()
    }
    for fresh in pair(AWKWARD, 16):
        optimizer = build_optimizer(fresh, NESTEROV)
        fresh.load_state_dict(saved)
        for name, parameter in fresh.named_parameters():
            optimizer.state[parameter]["momentum_buffer"] = padded(fresh, name, momentum[name]).clone()
        train(fresh, optimizer, range(10, 20))
        if hasattr(fresh, "padded_shapes"):
            assert_padding_is_zero(fresh, optimizer)
        again = dict(fresh.state_dict())
    train(model, optimizers[0], range(10, 20))
    torch.testing.assert_close(again, dict(model.state_dict()), **TOLERANCE[torch.float64])


def test_the_state_dict_is_that_of_the_unpadded_model():
    model, twin = pair(AWKWARD, 16)
    ours, theirs = model.state_dict(), twin.state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    assert next(iter(nn.ModuleDict({"inner": twin}).state_dict().values())).shape == (12, 3, 3, 3)


def test_loading_zeroes_the_padding_and_leaves_what_was_loaded_alone():
    model, twin = pair(AWKWARD, 16)
    for tensor in twin.state_dict(keep_vars=True).values():
        tensor.detach().add_(1)
    for name in twin.padded_shapes:
        layer, _, attribute = name.rpartition(".")
        getattr(twin.get_submodule(layer), attribute).data.add_(1)
    state = dict(model.state_dict())
    before = {key: tensor.shape for key, tensor in state.items()}
    twin.load_state_dict(state)
    assert {key: tensor.shape for key, tensor in state.items()} == before
    assert_padding_is_zero(twin)
    torch.testing.assert_close(dict(twin.state_dict()), state, rtol=0, atol=0)


def test_loading_happens_in_place():
    """A captured graph relies on this."""
    model, twin = pair(AWKWARD, 16)
    addresses = [p.data_ptr() for p in twin.parameters()]
    twin.load_state_dict(model.state_dict())
    assert [p.data_ptr() for p in twin.parameters()] == addresses


def test_a_checkpoint_of_a_model_as_wide_as_the_padding_is_refused():
    wider = build_model(replace(AWKWARD, stem_channels=16, channels=(16, 32, 32), in_channels=8))
    _, twin = pair(AWKWARD, 32)
    with pytest.raises(RuntimeError, match=r"stem.0.conv.weight: \(16, 8, 3, 3\), must be \(12, 3, 3, 3\)"):
        twin.load_state_dict(wider.state_dict())
    assert_padding_is_zero(twin)


def test_parameters_are_counted_without_padding():
    assert real_parameters(pad_widths(build_model(ResNetConfig()), 64)) == 4_662_098
    assert real_parameters(build_model(ResNetConfig())) == 4_662_098


def test_the_layout_is_kept():
    model = build_model(AWKWARD).to(memory_format=torch.channels_last)
    pad_widths(model, 16)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    inputs = []
    model.stem.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(batch(0, torch.float32)[0])
    assert inputs[0].shape[1] == 8
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


def test_images_may_come_padded():
    _, twin = pair(AWKWARD, 8)
    images, _ = batch(0)
    padded_images = F.pad(images, (0, 0, 0, 0, 0, 5))
    assert torch.equal(twin.eval()(padded_images), twin(images))


def test_torch_compile_takes_it_as_one_graph():
    _, twin = pair(AWKWARD, 8)
    images, _ = batch(0)
    compiled = torch.compile(twin.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), twin(images), **TOLERANCE[torch.float64])


def test_a_copy_is_a_padded_model_of_its_own():
    _, twin = pair(AWKWARD, 8)
    other = copy.deepcopy(twin)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(next(iter(other.state_dict().values())), next(iter(twin.state_dict().values())))
    other.load_state_dict(twin.state_dict())
    assert_padding_is_zero(other)


def test_what_was_padded_is_described():
    assert describe_padding(build_model(ResNetConfig())) == []
    assert describe_padding(pad_widths(build_model(ResNetConfig()), 8)) == [
        "3 -> 8 channels in 1 convolution",
        "196 -> 200 channels in 7 convolutions",
        "+2.8% multiply-accumulates",
    ]


def test_aligned_widths_stay():
    aligned = ResNetConfig(in_channels=8, stem_channels=8, channels=(8, 40), blocks=(1, 1), strides=(1, 2))
    model = pad_widths(build_model(aligned), 64)
    assert model.padded_shapes == {} and describe_padding(model, (8, 16, 16)) == []
    assert model(torch.randn(2, 8, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    ("layer", "words"),
    [(nn.GroupNorm(2, 20), "GroupNorm"), (nn.Conv2d(20, 20, 3, groups=2), "groups=2"), (nn.PReLU(20), "PReLU")],
)
def test_layers_for_which_it_is_not_exact_are_refused(layer, words):
    with pytest.raises(UserError, match=words):
        pad_widths(nn.Sequential(nn.Conv2d(3, 20, 3), layer), 8)


def test_other_multiples_are_refused():
    with pytest.raises(UserError, match="`multiple=12`: must be one of 8, 16, 32, 64"):
        pad_widths(build_model(AWKWARD), 12)
