"""Imports run one way, from the ground up: no folder imports one above it, and no file imports itself through others."""

import ast
from pathlib import Path

import fastcifar

ROOT = Path(fastcifar.__file__).parent
LAYERS = (
    ("runtime",),
    ("augment",),
    ("data",),
    ("models", "optim"),
    ("recipe",),
    ("run",),
    ("display",),
    ("engine",),
    ("profiling",),
    ("bench",),
    ("commands",),
    ("cli",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Modules of fastcifar that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastcifar."):
            for name in node.names:
                submodule = ROOT.parent.joinpath(*node.module.split("."), f"{name.name}.py").exists()
                yield f"{node.module}.{name.name}" if submodule else node.module


def files():
    return [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in HEIGHT]


def room(module):
    return module.split(".")[1]


def test_every_folder_has_a_layer():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders == {name for names in LAYERS for name in names} - {"recipe", "cli"}


def test_no_file_imports_from_a_layer_above_it():
    upward = []
    for path in files():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            if HEIGHT[room(module)] > HEIGHT[own]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward


def test_no_file_imports_itself_through_others():
    graph = {}
    for path in files():
        name = ".".join(("fastcifar", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = {module for module in imports(path) if module != name}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for module in graph[name]:
            visit(module)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)
