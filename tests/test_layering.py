"""The layers of the package, read from its imports: a file imports only from lower rows."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "muon_optax"
SOURCE = Path(__file__).parents[1] / PACKAGE

# The one place that says where a file belongs. A file that does not exist yet may be named; one that exists
# must be. A sub-package counts as one file: what is inside it may import each other.
ROWS = (
    {"_checks", "_coefficients", "_layout", "_paths", "_precision"},
    {"_layout_rules", "_mesh", "_scales", "_shardings", "_start", "_step"},
    {"_gram_newton_schulz", "_polar", "_assign_layouts", "_decay_mask", "_routes"},
    {"_newton_schulz", "_groups", "_exchange", "_placement", "diagnostics"},
    {"_orthogonalize", "_scale_by_shape", "_partition", "_plan", "_state_shardings", "_summary"},
    {"_muon"},
)
OPTAX_ROW = 4
THIRD_PARTY = {"jax", "numpy", "optax"}
FRAMEWORKS = {"flax", "equinox", "haiku"}


def row_of(module: str) -> int | None:
    """The row of ``"_muon"`` or ``"_kernels.gram"``; ``__init__`` lies above all rows."""
    first = module.split(".")[0]
    if first == "__init__":
        return len(ROWS)
    return next((row for row, names in enumerate(ROWS) if first in names), None)


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


def absolute_names(node: ast.Import | ast.ImportFrom, module: str) -> list[str]:
    """What a statement imports, as dotted names: ``from . import _paths`` gives ``muon_optax._paths``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        # The package that the file lies in: one part fewer for each dot.
        parts = [PACKAGE, *module.split(".")]
        base = ".".join([*parts[: len(parts) - node.level], *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def own_import_error(module: str, name: str) -> str | None:
    """Why ``module`` may not import ``name``, which lies in this package."""
    imported = name.removeprefix(PACKAGE).lstrip(".")
    first = imported.split(".")[0]
    row, target = row_of(module), row_of(first) if imported else None
    if target is None or first == "__init__":
        if first and (SOURCE / f"{first}.py").exists():
            return None  # unlisted: reported once, for the file itself
        return f"imports {name!r} from the package itself; import it from the file that defines it"
    if first == module.split(".")[0] and "." in module:
        return None
    if row is not None and target >= row:
        return f"of row {row} imports {first!r} of row {target}; only lower rows are allowed"
    return None


def foreign_import_error(module: str, name: str) -> str | None:
    """Why ``module`` may not import ``name``, which lies in another package."""
    first, *rest = name.split(".")
    if first in sys.stdlib_module_names:
        return None
    if first in FRAMEWORKS:
        return f"imports {name!r}; no framework enters here: recognize its types by module path and name"
    if first not in THIRD_PARTY:
        return f"imports {name!r}, which is no runtime dependency ({', '.join(sorted(THIRD_PARTY))})"
    if any(part.startswith("_") for part in rest):
        return f"imports {name!r}, which is private; use only public names"
    row = row_of(module)
    if first == "optax" and row is not None and row < OPTAX_ROW:
        return f"of row {row} imports optax, which enters at row {OPTAX_ROW}"
    return None


def import_errors(module: str, source: str) -> list[str]:
    """What is wrong with the imports of ``module`` (its name in the package, ``"_muon"``), one line each."""
    errors = []
    if row_of(module) is None:
        errors.append(f"{module}: is in no row; add it to ROWS in {Path(__file__).name}, as low as it fits")
    for node, inside in walk(ast.parse(source)):
        problems: list[str | None] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            if inside:
                problems.append(f"imports inside a {inside}; imports stand at the top of the file")
            for name in absolute_names(node, module):
                own = name.split(".")[0] == PACKAGE
                problems.append(own_import_error(module, name) if own else foreign_import_error(module, name))
        elif isinstance(node, ast.Attribute) and node.attr == "_src":
            problems.append("reaches into a '_src'; use only public names")
        elif isinstance(node, ast.Name | ast.Attribute):
            called = node.id if isinstance(node, ast.Name) else node.attr
            if called in ("__import__", "import_module"):
                problems.append(f"uses {called!r}, which hides an import")
        line = getattr(node, "lineno", 0)
        errors += [f"{module}:{line}: {problem}" for problem in problems if problem]
    return errors


def reexport_errors(source: str) -> list[str]:
    """What ``__init__`` holds besides a docstring, imports and dunder names."""
    body = ast.parse(source).body
    errors = []
    for index, node in enumerate(body):
        is_docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_dunder = isinstance(node, ast.Assign) and all(
            isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets
        )
        if not (is_docstring or is_dunder or isinstance(node, ast.Import | ast.ImportFrom)):
            errors.append(f"__init__:{node.lineno}: only re-exports are allowed here")
    return errors


def package_files() -> dict[str, str]:
    """Source of every file by its name in the package, ``"_muon"`` or ``"_kernels.__init__"``."""
    files = sorted(SOURCE.rglob("*.py"))
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    return {name: file.read_text("utf-8") for name, file in zip(names, files, strict=True)}


def test_package_keeps_to_its_layers() -> None:
    files = package_files()
    assert "__init__" in files, f"no package at {SOURCE}"
    errors = [error for module, source in files.items() for error in import_errors(module, source)]
    errors += reexport_errors(files["__init__"])
    assert not errors, "\n" + "\n".join(errors)


def test_no_file_is_in_two_rows() -> None:
    names = [name for row in ROWS for name in row]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "module, source, message",
    [
        ("_paths", "from muon_optax._muon import muon", "of row 0 imports '_muon' of row 5"),
        ("_paths", "from muon_optax._layout import Layout", "of row 0 imports '_layout' of row 0"),
        ("_paths", "from muon_optax import _layout", "of row 0 imports '_layout' of row 0"),
        ("_paths", "from . import _layout", "of row 0 imports '_layout' of row 0"),
        ("_paths", "from ._layout import Layout", "of row 0 imports '_layout' of row 0"),
        ("_paths", "import muon_optax._layout as layout", "of row 0 imports '_layout' of row 0"),
        ("_muon", "import muon_optax", "from the package itself"),
        ("_muon", "from muon_optax import Layout", "from the package itself"),
        ("_muon", "from . import Layout", "from the package itself"),
        ("_exchange.mesh", "from .._muon import muon", "of row 3 imports '_muon' of row 5"),
        ("_exchange.mesh", "from .. import _groups", "of row 3 imports '_groups' of row 3"),
        ("_muon", "def f():\n    import math", "_muon:2: imports inside a FunctionDef"),
        ("_muon", "async def f():\n    import math", "inside a AsyncFunctionDef"),
        ("_muon", "class A:\n    def f(self):\n        from optax import adamw", "inside a ClassDef"),
        ("_muon", "try:\n    import jax\nexcept ImportError:\n    pass", "inside a Try"),
        ("_muon", "if True:\n    import jax", "inside a If"),
        ("_muon", "if TYPE_CHECKING:\n    if True:\n        import jax", "inside a If"),
        ("_polar", "import optax", "of row 2 imports optax"),
        ("_groups", "from optax import tree", "of row 3 imports optax"),
        ("_groups", "if TYPE_CHECKING:\n    import optax", "of row 3 imports optax"),
        ("_muon", "import flax.nnx as nnx", "no framework enters"),
        ("_muon", "from equinox import Module", "no framework enters"),
        ("_muon", "import haiku as hk", "no framework enters"),
        ("_muon", "if typing.TYPE_CHECKING:\n    import flax", "no framework enters"),
        ("_muon", "import chex", "no runtime dependency"),
        ("_muon", "from optax._src import base", "which is private"),
        ("_muon", "from jax import _src", "which is private"),
        ("_muon", "import jax._src.core", "which is private"),
        ("_muon", "import optax\noptax._src.base.identity()", "_muon:2: reaches into a '_src'"),
        ("_muon", "import importlib\nimportlib.import_module('flax')", "hides an import"),
        ("_muon", "__import__('flax')", "hides an import"),
        ("_helpers", "x = 1", "_helpers: is in no row; add it to ROWS"),
    ],
)
def test_checker_finds(module: str, source: str, message: str) -> None:
    errors = import_errors(module, source)
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    "module, source",
    [
        ("_muon", "from __future__ import annotations\nimport optax\nfrom muon_optax._plan import plan"),
        ("_muon", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jax.sharding import Mesh"),
        ("_muon", "from . import _layout, _paths"),
        ("_exchange.mesh", "from ._cost import flops\nfrom .._paths import named_leaves"),
        ("_polar", "import jax.numpy as jnp\nimport numpy as np"),
        ("__init__", "from muon_optax import diagnostics\nfrom muon_optax._muon import muon"),
    ],
)
def test_checker_allows(module: str, source: str) -> None:
    assert import_errors(module, source) == []


@pytest.mark.parametrize("source", ["x = 1", "def f(): ...", "if True:\n    __all__ = []", "print()"])
def test_init_holds_nothing_but_reexports(source: str) -> None:
    good = '"""Docstring."""\nfrom muon_optax._muon import muon\n__all__ = ["muon"]\n'
    assert reexport_errors(good) == []
    assert reexport_errors(good + source) == ["__init__:4: only re-exports are allowed here"]
