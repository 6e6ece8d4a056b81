"""The architecture is the order of the folders: a file imports only from its own folder and from those above it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest
from places import ROOT

PACKAGE = "muon_optax"
SOURCE = ROOT / PACKAGE

# Each folder may import from those before it, so a folder and its parent never import each other. Files that lie in no
# folder, the front door, come last.
FOLDERS = (
    "_layouts",
    "_layouts.tree",
    "_layouts.evidence",
    "_layouts.strength",
    "_layouts.assigning",
    "_orthogonalizers",
    "_orthogonalizers.kernels",
    "_mesh",
    "_transforms.checks",
    "_transforms.momenta",
    "_transforms.state",
    "_transforms",
    "_transforms.by_path",
    "_transforms.tools",
    "_transforms.family",
    "_state",
    "_diagnostics",
)
TOP = {folder.split(".")[0] for folder in FOLDERS}
WITHOUT_OPTAX = ("_layouts", "_orthogonalizers")
# The one import inside a function, and from below: Pallas takes longer to import than the whole package.
DEFERRED = ("_orthogonalizers.newton_schulz", "muon_optax._orthogonalizers.kernels.on_a_tpu.on_a_tpu")
# Modules that nothing imports, each with the one package that it may import besides the runtime dependencies.
INTEGRATIONS = {"equinox": "equinox", "flax": "flax", "haiku": "haiku", "keras": "keras", "plots": "matplotlib"}
THIRD_PARTY = {"jax", "numpy", "optax"}
MOST_FILES = 12  # in one folder


def folder_of(module: str) -> int:
    """The position of the folder that holds ``"_layouts.paths"``; the front door comes after all folders."""
    parts = module.split(".")
    inside = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((FOLDERS.index(folder) for folder in inside if folder in FOLDERS), len(FOLDERS))


def is_type_checking(node: ast.AST) -> bool:
    test = node.test if isinstance(node, ast.If) else None
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def walk(node: ast.AST, inside: str | None = None) -> Iterator[tuple[ast.AST, str | None]]:
    """Every node below ``node`` with the kind of statement it hides in (a function, an if), or None."""
    for child in ast.iter_child_nodes(node):
        yield child, inside
        hides = isinstance(child, ast.stmt) and not is_type_checking(child)
        yield from walk(child, inside or (type(child).__name__ if hides else None))


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def import_error(module: str, name: str) -> str | None:
    """Why ``module`` may not import ``name``."""
    first, *rest = name.split(".")
    if not first:
        return f"imports {name!r} by dots; write the whole path"
    if first == PACKAGE:
        if rest and rest[0] in INTEGRATIONS:
            return f"imports {name!r}; nothing imports an integration"
        if not rest or (rest[0] not in TOP and not (SOURCE / f"{rest[0]}.py").exists()):
            return f"imports {name!r} from the package itself; import it from the file that defines it"
        if folder_of(".".join(rest)) > folder_of(module):
            return f"imports {name!r}, which lies below it"
        return None
    if first in sys.stdlib_module_names or INTEGRATIONS.get(module) == first:
        return None
    if first not in THIRD_PARTY:
        return f"imports {name!r}, which is no runtime dependency ({', '.join(sorted(THIRD_PARTY))})"
    if any(part.startswith("_") for part in rest):
        return f"imports {name!r}, which is private; use public names only"
    if first == "optax" and module.split(".")[0] in WITHOUT_OPTAX:
        return f"imports {name!r}; layouts and orthogonalizers do without Optax"
    return None


def errors_of(module: str, source: str) -> list[str]:
    """What is wrong with ``module`` (its name in the package, ``"_layouts.paths"``), one line each."""
    errors = []
    tree = ast.parse(source)
    for node, inside in walk(tree):
        problems: list[str | None] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            if inside == "FunctionDef" and [(module, name) for name in imported_names(node)] == [DEFERRED]:
                continue
            if inside:
                problems.append(f"imports inside a {inside}; imports stand at the top of the file")
            if module != "__init__":
                problems += [import_error(module, name) for name in imported_names(node)]
        elif isinstance(node, ast.Attribute) and node.attr == "_src":
            problems.append("reaches into a '_src'; use only public names")
        elif isinstance(node, ast.Name | ast.Attribute):
            called = node.id if isinstance(node, ast.Name) else node.attr
            if called in ("__import__", "import_module"):
                problems.append(f"uses {called!r}, which hides an import")
        errors += [f"{module}:{node.lineno}: {problem}" for problem in problems if problem]
    if module.split(".")[-1] == "__init__":
        allowed = ast.Import | ast.ImportFrom if module == "__init__" else ()
        errors += [
            f"{module}:{node.lineno}: no code is allowed in an __init__.py"
            for node in tree.body
            if not (isinstance(node, allowed) or is_docstring(node) or is_dunder(node))
        ]
    return errors


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_dunder(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets
    )


def cycles(files: dict[str, str]) -> list[str]:
    """Files that import each other in a circle."""
    graph = {}
    for module, source in files.items():
        names = [name for node in ast.walk(ast.parse(source)) for name in imported_names(node)]
        own = [name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")]
        graph[module] = {other for name in own for other in (name, name.rpartition(".")[0]) if other in files}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def package_files() -> dict[str, str]:
    """Source of every file by its name in the package, ``"_muon"`` or ``"_layouts.paths"``."""
    files = sorted(SOURCE.rglob("*.py"))
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    return {name: file.read_text("utf-8") for name, file in zip(names, files, strict=True)}


def test_folders_import_only_from_those_above() -> None:
    files = package_files()
    errors = [error for module, source in files.items() for error in errors_of(module, source)]
    assert not errors, "\n" + "\n".join(errors)
    assert not cycles(files)


def test_every_folder_is_in_the_order_and_small() -> None:
    folders = {folder for folder in SOURCE.rglob("*") if folder.is_dir() and list(folder.glob("*.py"))}
    assert {".".join(folder.relative_to(SOURCE).parts) for folder in folders} == set(FOLDERS)
    sizes = {
        folder.name: len([f for f in folder.glob("*.py") if f.stem != "__init__"]) for folder in {*folders, SOURCE}
    }
    assert max(sizes.values()) <= MOST_FILES, sizes


@pytest.mark.parametrize(
    "module, source, message",
    [
        ("_layouts.paths", "from muon_optax._muon import muon", "which lies below it"),
        ("_layouts.paths", "from muon_optax._mesh.plan import plan", "which lies below it"),
        ("_orthogonalizers.step", "import muon_optax._mesh.plan as plan", "which lies below it"),
        ("_layouts.paths", "from muon_optax._layouts.tree import names", "which lies below it"),
        ("_transforms.orthogonalize", "from muon_optax._transforms.family import normuon", "which lies below it"),
        ("_layouts.tree.scope", "from muon_optax._layouts.evidence.bias import by_bias", "which lies below it"),
        ("_layouts.paths", "from .layout import Layout", "by dots"),
        ("_muon", "import muon_optax", "from the package itself"),
        ("_muon", "from muon_optax import Layout", "from the package itself"),
        ("_muon", "from muon_optax.flax import layouts_of", "nothing imports an integration"),
        ("_muon", "def f():\n    import math", "_muon:2: imports inside a FunctionDef"),
        ("_muon", f"def f():\n    from {DEFERRED[1].rpartition('.')[0]} import on_a_tpu", "inside a FunctionDef"),
        ("_muon", "try:\n    import jax\nexcept ImportError:\n    pass", "inside a Try"),
        ("_muon", "if TYPE_CHECKING:\n    if True:\n        import jax", "inside a If"),
        ("_layouts.paths", "import optax", "do without Optax"),
        ("_orthogonalizers.step", "from optax import tree", "do without Optax"),
        ("_muon", "import flax.nnx as nnx", "no runtime dependency"),
        ("flax", "import equinox", "no runtime dependency"),
        ("_muon", "import matplotlib", "no runtime dependency"),
        ("_diagnostics.recording", "from muon_optax.plots import heat_map", "nothing imports an integration"),
        ("_muon", "import chex", "no runtime dependency"),
        ("_muon", "from optax._src import base", "which is private"),
        ("_muon", "import optax\noptax._src.base.identity()", "_muon:2: reaches into a '_src'"),
        ("_muon", "import importlib\nimportlib.import_module('flax')", "hides an import"),
        ("_muon", "__import__('flax')", "hides an import"),
        ("__init__", "x = 1", "no code is allowed"),
        ("_mesh.__init__", "from muon_optax._mesh.plan import plan", "no code is allowed"),
    ],
)
def test_checker_finds(module: str, source: str, message: str) -> None:
    (error,) = errors_of(module, source)
    assert message in error


@pytest.mark.parametrize(
    "module, source",
    [
        ("_muon", "from __future__ import annotations\nimport optax\nfrom muon_optax._mesh.plan import plan"),
        ("_muon", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jax.sharding import Mesh"),
        ("_layouts.tree.names", "from muon_optax._layouts.layout import Layout"),
        ("_layouts.paths", "import jax.numpy as jnp\nfrom muon_optax._layouts.layout import Layout"),
        ("plots", "from matplotlib.axes import Axes"),
        ("flax", "from flax import nnx\nfrom muon_optax._layouts.layout import Layout"),
        ("__init__", '"""Docstring."""\nfrom muon_optax._muon import muon\n__all__ = ["muon"]'),
        ("_mesh.__init__", '"""Docstring."""'),
    ],
)
def test_checker_allows(module: str, source: str) -> None:
    assert errors_of(module, source) == []


def test_checker_finds_cycles() -> None:
    a, b = "from muon_optax._layouts.b import x", "from muon_optax._layouts.a import y"
    assert cycles({"_layouts.a": a, "_layouts.b": b})
    assert not cycles({"_layouts.a": a, "_layouts.b": ""})
