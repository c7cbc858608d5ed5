"""The ResNet: the seed's counts, its shapes, each block against its formula, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from fastcifar.models import MODELS, ResNet, ResNetConfig, build_model
from fastcifar.models.resnet import BLOCKS, SqueezeExcitation, StochasticDepth
from fastcifar.runtime.cuda_graph import capture, side_stream
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.precision import autocast

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"stem_channels": 8, "channels": (8, 16), "blocks": (2, 1), "strides": (1, 2)}


def test_the_seed_model_has_the_seeds_parameters_all_trainable():
    parameters = list(build_model(ResNetConfig()).parameters())
    assert sum(p.numel() for p in parameters) == 4_662_098
    assert all(p.requires_grad for p in parameters)


def test_no_convolution_has_a_bias():
    convolutions = [m for m in build_model(ResNetConfig()).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 7 * 2 + 3  # the stem, two a block, and a shortcut where a stage changes its width
    assert all(m.bias is None for m in convolutions)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("size", "channels", "classes"), [((32, 32), 3, 10), ((17, 9), 1, 100)])
def test_logits_of_any_image_size_channels_and_classes(block, size, channels, classes):
    model = build_model(ResNetConfig(num_classes=classes, in_channels=channels, block=block, **SMALL))
    assert model(torch.randn(2, channels, *size)).shape == (2, classes)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_of_zero_weights_is_the_relu_of_its_input(block):
    model = build_model(ResNetConfig(block=block, **SMALL)).eval()
    second = model.stages[0][1]
    torch.nn.init.zeros_(second.body[-1].norm.weight)
    images = torch.randn(2, 8, 5, 5)
    assert torch.equal(second(images.clone()), images.relu())


def plain_logits(weights: dict[str, torch.Tensor], config: ResNetConfig, images: torch.Tensor) -> torch.Tensor:
    """The papers' formulas in functions of PyTorch, in training, without dropout and stochastic depth."""

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(x, name):
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    def conv_norm(x, name, stride=1):
        return norm(conv(x, f"{name}.conv", stride), f"{name}.norm")

    def gated(x, name):
        squeezed = conv(x.mean((2, 3), keepdim=True), f"{name}.gate.0").relu() if config.squeeze else None
        return x * conv(squeezed, f"{name}.gate.2").sigmoid() if config.squeeze else x

    def basic(x, name, stride):
        y = conv_norm(x, f"{name}.body.0", stride).relu()
        y = gated(conv_norm(y, f"{name}.body.2"), f"{name}.body.3")
        return (y + (x if x.shape == y.shape else conv_norm(x, f"{name}.shortcut", stride))).relu()

    def bottleneck(x, name, stride):
        y = conv_norm(x, f"{name}.body.0").relu()
        y = conv_norm(y, f"{name}.body.2", stride).relu()
        y = gated(conv_norm(y, f"{name}.body.4"), f"{name}.body.5")
        return (y + (x if x.shape == y.shape else conv_norm(x, f"{name}.shortcut", stride))).relu()

    def preactivation(x, name, stride):
        active = norm(x, f"{name}.norm").relu()
        y = conv_norm(active, f"{name}.body.0", stride).relu()
        y = gated(conv(y, f"{name}.body.2"), f"{name}.body.3")
        return y + (x if x.shape == y.shape else conv(active, f"{name}.shortcut", stride))

    block = {"basic": basic, "bottleneck": bottleneck, "preactivation": preactivation}[config.block]
    x = conv(images, "stem.0") if config.block == "preactivation" else conv_norm(images, "stem.0").relu()
    for stage, (count, stride) in enumerate(zip(config.blocks, config.strides, strict=True)):
        for index in range(count):
            x = block(x, f"stages.{stage}.{index}", 1 if index else stride)
    x = norm(x, "final.0").relu() if config.block == "preactivation" else x
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.mark.parametrize("squeeze", [0, 4])
@pytest.mark.parametrize("block", BLOCKS)
def test_logits_and_gradients_are_those_of_the_formulas(block, squeeze):
    torch.manual_seed(0)
    config = ResNetConfig(**SMALL | {"blocks": (2, 2)}, block=block, squeeze=squeeze, dropout=0.0)
    model = build_model(config).double()
    weights = {name: p.detach().uniform_(-1, 1).clone().requires_grad_() for name, p in model.named_parameters()}
    images, upstream = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    logits, expected = model(images), plain_logits(weights, config, images)
    torch.testing.assert_close(logits, expected)
    found = torch.autograd.grad(logits, list(model.parameters()), upstream)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(weights.values()), upstream))


def test_squeeze_and_excitation_is_torchvisions():
    from torchvision.ops import SqueezeExcitation as Theirs

    ours, theirs, x = SqueezeExcitation(16, 4), Theirs(16, 4), torch.randn(2, 16, 5, 5)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(x), theirs(x))


def test_blocks_are_skipped_with_probabilities_that_rise_linearly():
    model = build_model(ResNetConfig(**SMALL, squeeze=4, stochastic_depth=0.3))
    last = [block.body[-1] for stage in model.stages for block in stage]
    assert [layer.survival for layer in last] == pytest.approx([0.9, 0.8, 0.7])


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    layer, x = StochasticDepth(0.2), torch.randn(2000, 2, 3, 3)
    torch.manual_seed(0)
    y = layer(x)
    dropped = (y == 0).flatten(1).all(1)
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.8)
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2000) ** 0.5)
    assert torch.equal(layer.eval()(x), x)


def test_the_random_state_decides_what_is_dropped():
    model, images = build_model(ResNetConfig(**SMALL, stochastic_depth=0.5, dropout=0.0)), torch.randn(16, 3, 8, 8)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))


@pytest.mark.parametrize("layer", [SqueezeExcitation(16, 4), StochasticDepth(0.5)], ids=lambda layer: type(layer).__name__)
def test_features_stay_16_bit_and_channels_last(layer):
    x = torch.randn(4, 16, 5, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with autocast(torch.device("cpu"), "bf16"):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", BLOCKS)
def test_torch_compile_takes_every_block_as_one_graph(block):
    model = build_model(ResNetConfig(**SMALL, block=block, squeeze=4, stochastic_depth=0.5, dropout=0.0))
    compiled, images = torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(8, 3, 8, 8)
    torch.manual_seed(0)
    expected = model(images)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(images), expected)


@pytest.mark.gpu
def test_replays_of_a_cuda_graph_drop_other_images_each_time_and_follow_the_seed():
    model = build_model(ResNetConfig(**SMALL, block="preactivation", squeeze=4, stochastic_depth=0.5, dropout=0.0))
    model.to("cuda", memory_format=torch.channels_last)
    images = torch.randn(32, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    losses = torch.zeros(32, device="cuda")

    def work() -> None:
        loss = model(images).square().sum(1)
        loss.sum().backward()
        losses.copy_(loss.detach())

    with side_stream():
        work()
    replay = capture(work)

    def replayed(seed: int) -> list[torch.Tensor]:
        torch.cuda.manual_seed(seed)
        return [losses.clone() for _ in range(2) if replay() is None]

    first, again, other = replayed(0), replayed(0), replayed(1)
    torch.testing.assert_close(again, first)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0], other[0])


def test_dropout_acts_in_training_only():
    model = build_model(ResNetConfig(**SMALL, dropout=0.5))
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": ()}, "channels = []"),
        ({"blocks": (1,)}, "blocks = [1]: must hold one number for each of 2 channels"),
        ({"strides": (1, 0)}, "strides = [1, 0]"),
        ({"stem_channels": 0}, "stem_channels = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"channels": (2, 8), "block": "bottleneck"}, "bottleneck"),
        ({"block": "fancy"}, "must be one of basic, bottleneck, preactivation"),
        ({"squeeze": -1}, "squeeze = -1"),
        ({"squeeze": 9}, "squeeze = 9: must be from 0 to the fewest channels, 8"),
        ({"stochastic_depth": 1.0}, "stochastic_depth = 1.0: must be at least 0 and below 1"),
        ({"budget": -1}, "budget = -1"),
    ],
)
def test_impossible_configurations_are_refused(changes, words):
    with pytest.raises(UserError) as caught:
        ResNetConfig(**SMALL | changes)
    assert words in str(caught.value)


def test_the_registry_builds_what_it_names():
    assert isinstance(build_model(MODELS["resnet"][0](**SMALL)), ResNet)
