"""Count what torch.compile makes of a recipe's forward pass, loss and backward pass on an H200, without one:

    python benchmarks/absent_gpu/count.py seed --set train.pad_widths=16 --inductor combo_kernels=True
    FASTCIFAR_NORM=fused python benchmarks/absent_gpu/count.py seed --set train.pad_widths=16

Prints, for each of the two graphs, the Triton launches by kind with the bytes that they move, and the calls of libraries
(convolutions, matrix products). Bytes are Inductor's own count of each kernel's inputs and outputs; of our BatchNorm kernels
it has none. Not counted: the update of the weights, a kernel of PyTorch's, and the augmentation. Needs a C++ compiler and
PyTorch's CUDA build.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # fastcifar need not be installed

from absent_gpu import install, start_again_with_stub

GRAPHS = "forward and loss", "backward"
KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)
LAUNCH = re.compile(r"(\w+)\.run\(")
CALL = re.compile(r"(?:extern_kernels|torch\.ops\.aten|aten)\.(\w+)[\w.]*\(")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="seed", help="name of a recipe or a .toml file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--inductor", action="append", default=[], metavar="KEY=VALUE", help="of torch._inductor.config")
    parser.add_argument("--code", type=Path, metavar="FOLDER", help="write the generated code there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    start_again_with_stub()
    generated = install()
    compile_step(arguments.recipe, ["train.precision=bf16", *arguments.set], arguments.inductor, generated)
    counts = {name: count(code) for name, code in zip(GRAPHS, generated, strict=True)}
    for name, found in counts.items():
        show(name, found)
    if arguments.code:
        arguments.code.mkdir(parents=True, exist_ok=True)
        for name, code in zip(GRAPHS, generated, strict=True):
            (arguments.code / f"{name.replace(' ', '_')}.py").write_text(code)
    if arguments.json:
        arguments.json.write_text(json.dumps(counts, indent=2) + "\n")


def compile_step(recipe: str, overrides: list[str], options: list[str], generated: list[str]) -> None:
    """Compile the engine's own forward pass and loss on tensors that have a shape and no memory."""
    import torch
    import torch._inductor.config as inductor
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fastcifar.engine.step import forward_loss
    from fastcifar.models import build_model
    from fastcifar.models.norm import choose_norms, fuse_norms
    from fastcifar.models.padding import pad_widths
    from fastcifar.recipe import load_recipe

    loaded, mode = load_recipe(recipe, overrides), FakeTensorMode(allow_non_fake_inputs=True)
    model = build_model(loaded.model)
    if loaded.train.pad_widths:
        pad_widths(model, loaded.train.pad_widths)
    model = fuse_norms(model, *choose_norms(model, torch.device("cuda")))
    model = without_memory(model.to(memory_format=torch.channels_last), mode).train()
    height, width = loaded.augment.output_size(32, 32, loaded.model.in_channels)
    shape = loaded.train.batch_size, height, width, loaded.model.in_channels
    with mode:
        images = torch.empty(shape, dtype=torch.bfloat16, device="cuda:0").permute(0, 3, 1, 2)
        labels = torch.empty(shape[0], dtype=torch.int64, device="cuda:0")
    step = torch.compile(forward_loss(model, torch.device("cuda"), loaded), dynamic=False)
    settings = dict(setting.split("=", 1) for setting in options)
    with mode, inductor.patch({name: ast.literal_eval(value) for name, value in settings.items()}):
        try:
            step(images, labels)
        except IndexError:  # the generated code returns nothing
            if len(generated) != len(GRAPHS):
                raise


def without_memory(model: Any, mode: Any) -> Any:
    """The model, in place, with its tensors on a device that is not there."""
    import torch

    for module in model.modules():
        for table, wrap in ((module._parameters, torch.nn.Parameter), (module._buffers, lambda tensor: tensor)):
            for name, tensor in table.items():
                if tensor is not None:
                    with mode:
                        absent = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda:0")
                        table[name] = wrap(absent)
    return model


def count(code: str) -> dict[str, Any]:
    """Launches, bytes and library calls of a module that Inductor generated."""
    from fastcifar.profiling.trace import group_of

    gigabytes = {name: re.search(r"'kernel_num_gb': ([\d.e+-]+)", body) for name, body in KERNEL.findall(code)}
    body = code[code.index("def call(") :]
    kinds: dict[str, dict[str, int]] = {}
    for name in LAUNCH.findall(body):
        kind = kinds.setdefault(group_of(name, ""), {"launches": 0, "bytes": 0})
        kind["launches"] += 1
        kind["bytes"] += round(1e9 * float(found[1])) if (found := gigabytes.get(name)) else 0
    launches, moved = (sum(kind[what] for kind in kinds.values()) for what in ("launches", "bytes"))
    return {"launches": launches, "bytes": moved, "kinds": kinds, "calls": dict(Counter(CALL.findall(body)))}


def show(name: str, found: dict[str, Any]) -> None:
    calls = ", ".join(f"{times} {call}" for call, times in found["calls"].items())
    print(f"{name}: {found['launches']} Triton launches, {found['bytes'] / 1e6:,.1f} MB; {calls}")
    for kind, row in found["kinds"].items():
        print(f"  {kind:<30} {row['launches']:>4} launches {row['bytes'] / 1e6:>8,.1f} MB")


if __name__ == "__main__":
    main()
