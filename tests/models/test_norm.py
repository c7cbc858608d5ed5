"""BatchNorm with sum and ReLU as a layer: PyTorch's results, names and refusals, and its place in the ResNets."""

import copy

import pytest
import torch
from torch import nn

from fastcifar.models import ResNetConfig, build_model
from fastcifar.models.norm import BatchNormAct, choose_norms, fuse_norms
from fastcifar.models.padding import pad_widths
from fastcifar.models.resnet import BLOCKS
from fastcifar.models.summary import summarize
from fastcifar.runtime import compiler as compiler_of_triton
from fastcifar.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"stem_channels": 8, "channels": (8, 12), "blocks": (2, 1), "strides": (1, 2), "num_classes": 3, "dropout": 0.0}


@pytest.fixture
def absent_gpu(monkeypatch):
    """A CUDA device, as far as the choice asks."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(compiler_of_triton, "missing_compiler", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("FASTCIFAR_NORM", "fused")
    return torch.device("cuda")


def pair(relu=True):
    """A layer and PyTorch's, with the same weights."""
    ours, theirs = BatchNormAct(5, relu=relu), nn.BatchNorm2d(5)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_the_reference_has_the_bits_of_pytorchs_layers(training, relu, added):
    ours, theirs = (layer.train(training) for layer in pair(relu))
    x, residual = torch.randn(2, 2, 5, 3, 3)
    expected = theirs(x) + residual if added else theirs(x)
    assert torch.equal(ours(x, residual) if added else ours(x), expected.relu() if relu else expected)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


def test_it_takes_over_the_tensors_of_a_batch_norm():
    theirs = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3).eval()
    ours = BatchNormAct.of(theirs, relu=False)
    assert (ours.eps, ours.momentum, ours.num_features, ours.training) == (1e-3, 0.3, 5, False)
    tensors = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    assert all(tensors[name] is value for name, value in (*ours.named_parameters(), *ours.named_buffers()))


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (0, 5, 2, 2), (2, 5, 3), (2, 4, 2, 2)])
def test_the_kernels_refuse_the_shapes_that_pytorch_refuses_and_empty_batches(shape):
    pytest.importorskip("triton", reason="Triton is not installed")
    ours, theirs = pair()
    ours.use("fused", "of the test")
    with pytest.raises(ValueError) as raised:
        ours(torch.randn(shape))
    if shape == (1, 5, 1, 1):
        with pytest.raises(ValueError, match="Expected more than 1 value") as expected:
            theirs(torch.randn(shape))
        assert str(raised.value) == str(expected.value)


def test_on_a_cpu_the_reference_is_chosen():
    assert choose_norms(build_model(ResNetConfig(**SMALL)), torch.device("cpu")) == ("reference", "Triton kernels need CUDA")


def test_on_a_gpu_the_kernels_are_chosen_but_for_norms_that_they_do_not_know(absent_gpu):
    model = build_model(ResNetConfig(**SMALL))
    assert choose_norms(model, absent_gpu)[0] == "fused"
    assert choose_norms(nn.Sequential(nn.BatchNorm2d(3)), absent_gpu) == ("reference", "Sequential does not use them")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert choose_norms(synchronised, absent_gpu) == ("reference", "the kernels do not compute SyncBatchNorm")
    model.stem[0].norm.momentum = None
    assert choose_norms(model, absent_gpu)[0] == "reference"


def test_the_kernels_are_chosen_only_where_they_are_asked_for(absent_gpu, monkeypatch):
    model = build_model(ResNetConfig(**SMALL))
    monkeypatch.delenv("FASTCIFAR_NORM")
    implementation, why = choose_norms(model, absent_gpu)
    assert implementation == "reference"
    assert "FASTCIFAR_NORM=fused" in why
    monkeypatch.setenv("FASTCIFAR_NORM", "fast")
    with pytest.raises(UserError, match="FASTCIFAR_NORM=fast: must be fused or reference"):
        choose_norms(model, absent_gpu)


@pytest.mark.parametrize(
    ("capability", "variable", "compiler", "reason"),
    [
        ((7, 5), "", "", "capability 8.0"),
        ((9, 0), "1", "", "TRITON_INTERPRET=1"),
        ((9, 0), "", "a C compiler", "a C compiler"),
    ],
)
def test_what_the_kernels_lack_is_the_reason(absent_gpu, monkeypatch, capability, variable, compiler, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(compiler_of_triton, "missing_compiler", lambda: compiler)
    monkeypatch.setenv("TRITON_INTERPRET", variable)
    implementation, why = choose_norms(build_model(ResNetConfig(**SMALL)), absent_gpu)
    assert implementation == "reference"
    assert reason in why


def test_the_reference_leaves_a_model_as_it_is():
    model = build_model(ResNetConfig(**SMALL))
    printed = str(model)
    assert str(fuse_norms(model, "reference", "")) == printed


MODELS = {
    **{block: {"block": block} for block in BLOCKS},
    "squeeze": {"squeeze": 4},
    "stochastic depth": {"stochastic_depth": 0.5},
    "padded": {},
}


def fused(changes, padded):
    """A ResNet, and the same with BatchNormAct."""
    torch.manual_seed(0)
    model = build_model(ResNetConfig(**SMALL | changes))
    if padded:
        pad_widths(model, 8)
    return model, fuse_norms(copy.deepcopy(model), "fused", "of the test")


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_resnet_has_the_same_names_sizes_and_evaluation(name):
    model, ours = fused(MODELS[name], name == "padded")
    assert not any(type(module) is nn.BatchNorm2d for module in ours.modules())
    assert list(ours.state_dict()) == list(model.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in model.named_parameters()]
    for what in ("parameters", "activation_mb", "macs", "training_macs"):
        assert getattr(summarize(ours), what) == getattr(summarize(model), what)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours.eval()(images), model.eval()(images))


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_resnet_trains_as_before(device, name):
    model, ours = (model.to(device) for model in fused(MODELS[name], name == "padded"))
    images = torch.randn(4, 3, 8, 8).to(device, memory_format=torch.channels_last)
    losses = []
    for each in (model, ours):
        torch.manual_seed(0)
        losses.append(torch.nn.functional.cross_entropy(each(images), torch.tensor([0, 1, 2, 0], device=device)))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=2e-5)
    for one, other in zip(ours.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    if name == "padded":
        assert torch.count_nonzero(ours.stages[1][0].body[0].norm.weight.grad) > 0
        for each, (real, _) in ours.padded_shapes.items():
            parameter = dict(ours.named_parameters()).get(each)
            if parameter is not None and parameter.dim() == 1:
                assert torch.count_nonzero(parameter.grad[real[0] :]) == 0


@pytest.mark.parametrize("name", MODELS)
def test_relu_follows_where_it_did(name):
    """In training, with the reference in the layers, the fused model has the bits of the other."""
    model, ours = fused(MODELS[name], name == "padded")
    for module in ours.modules():
        if isinstance(module, BatchNormAct):
            module.use("reference", "of the test")
    images = torch.randn(4, 3, 8, 8)
    logits = []
    for each in (model, ours):
        torch.manual_seed(0)
        logits.append(each(images))
        logits[-1].square().sum().backward()
    assert torch.equal(*logits)
    for one, other in zip(ours.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
