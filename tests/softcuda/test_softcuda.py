"""What softcuda promises; see README.md for how it is run."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("softcuda" not in sys.modules, reason="softcuda is not installed in this process"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty", "ignore:Synchronization debug mode is a prototype"),
]
LATE = "import torch\nx = torch.zeros(4, device='cuda')\nside = torch.cuda.Stream()\n{wait}\nwith torch.cuda.stream(side):\n"
LATE += "    y = x + 1\nx.fill_(7)\ntorch.cuda.synchronize()\nprint(y[0].item())\n"


def network(dropout=0.0):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Dropout(dropout), torch.nn.Linear(512, 5))


def optimizer_of(model, name):
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True, capturable=next(model.parameters()).is_cuda)


def step(model, optimizer, images, labels):
    loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def batch(device="cuda"):
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images.to(device, memory_format=torch.channels_last), torch.tensor([0, 1, 2, 3], device=device)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_has_the_numbers_of_a_cpu_eager_and_captured(name):
    model = network()
    models = {"cpu": model, "eager": copy.deepcopy(model).cuda(), "captured": copy.deepcopy(model).cuda()}
    optimizers = {key: optimizer_of(value, name) for key, value in models.items()}
    losses = {key: [] for key in models}
    for key in ("cpu", "eager"):
        for _ in range(5):
            losses[key].append(step(models[key], optimizers[key], *batch("cpu" if key == "cpu" else "cuda")).item())
    side, graph, data = torch.cuda.Stream(), torch.cuda.CUDAGraph(), batch()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        losses["captured"].append(step(models["captured"], optimizers["captured"], *data).item())
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        loss = step(models["captured"], optimizers["captured"], *data)
    for _ in range(4):
        graph.replay()
        losses["captured"].append(loss.item())
    assert losses["eager"] == losses["captured"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_a_capture_executes_nothing_and_a_replay_draws_anew():
    x, graph = torch.ones(1000, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x += 1
        y = F.dropout(x, 0.5)
    assert x.sum() == 1000
    masks = []
    for replay in range(3):
        graph.replay()
        assert x.sum() == 1000 * (replay + 2)
        masks.append((y != 0).cpu())
    assert 400 < masks[0].sum() < 600
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_draws_follow_the_generator():
    torch.cuda.manual_seed(5)
    first, state = torch.rand(3, device="cuda"), torch.cuda.get_rng_state()
    second = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), second) and not torch.equal(first, second)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool(x[0] > 0),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: x.copy_(torch.ones(3)),
    ],
)
def test_what_waits_fails_in_a_capture(forbidden):
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        forbidden(x)
    torch.cuda.synchronize()
    assert x.sum() == 3


def test_what_waits_is_told_of_in_debug_mode():
    x = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.nonzero()
        with pytest.raises(RuntimeError, match="synchronizing"):
            x[0].item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tensors_of_two_devices_do_not_mix():
    x = torch.ones(3, device="cuda")
    assert (x + torch.tensor(1.0)).sum() == 6
    index = torch.tensor([0])
    for bad in (lambda: x + torch.ones(3), lambda: x.index_select(0, index), lambda: torch.cat([x, torch.ones(3)])):
        with pytest.raises(RuntimeError, match="same device"):
            bad()


@pytest.mark.parametrize(("wait", "value"), [("side.wait_stream(torch.cuda.current_stream())", 1.0), ("", 8.0)])
def test_late_work_shows_a_missing_wait(wait, value):
    """Even the work of the other stream that was given first is late where nobody waits for it: x is 7 by then."""
    code = LATE.format(wait=wait).replace("x.fill_(7)\n", "x.fill_(7)\ntorch.cuda.current_stream().synchronize()\n")
    if wait:
        code = code.replace("x.fill_(7)", "torch.cuda.current_stream().wait_stream(side)\nx.fill_(7)")
    environment = os.environ | {"SOFTCUDA_LAZY": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == value


def in_a_process(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False)


def test_who_looks_for_torch_before_importing_it_gets_the_device_too():
    code = "import importlib.util\nimportlib.util.find_spec('torch')\nimport torch\n"
    done = in_a_process(code + "print((torch.ones(3, device='cuda') + 1).sum().item())")
    assert done.stdout == "6.0\n", done.stderr


def test_where_it_cannot_be_compiled_one_line_says_why(tmp_path):
    without_gcc = {"PATH": str(tmp_path), "SOFTCUDA_BUILD": str(tmp_path)}
    broken = {"SOFTCUDA_BUILD": str(tmp_path / "nowhere")}
    for environment, why in ((without_gcc, "gcc cannot be run"), (broken, "nowhere")):
        done = in_a_process("", **environment)
        assert done.returncode == 1
        assert done.stderr.startswith("softcuda cannot be used: ") and why in done.stderr
        assert done.stderr.count("\n") == 1
