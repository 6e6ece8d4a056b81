"""The public surface: the exported names are the documented names, and each explains itself."""

import importlib
import inspect
import re
import subprocess
import sys
from operator import attrgetter
from types import ModuleType

import pytest
from places import ROOT

import muon_optax

API_PAGE = ROOT / "docs" / "api.md"
DIRECTIVE = re.compile(r"^\.\. auto(function|class|data|module|exception):: muon_optax\.(\w+)$", re.MULTILINE)
INTEGRATIONS = ("flax", "plots")
WITH_MEMBERS = re.compile(r"^\.\. automodule:: muon_optax\.(\w+)\n   :members:$", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    """(name, kind of directive) in the order of the API page."""
    return [(name, kind) for kind, name in DIRECTIVE.findall(API_PAGE.read_text("utf-8"))]


def kind_of(value: object) -> str:
    if isinstance(value, ModuleType):
        return "module"
    if inspect.isclass(value):
        return "exception" if issubclass(value, Exception) else "class"
    return "function" if inspect.isfunction(value) or hasattr(value, "__wrapped__") else "data"


def section(docstring: str, name: str) -> str | None:
    """The indented body of a Google-style section, or None if there is no such section."""
    match = re.search(rf"^{name}:\n((?:[ \t]+\S.*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return match and match.group(1)


def docstring_errors(name: str, value: object) -> list[str]:
    """What the docstring and the annotations of a public function or class lack, one line each."""
    docstring = inspect.getdoc(value)
    if not docstring:
        return [f"{name} has no docstring"]
    signature = inspect.signature(value)
    parameters = signature.parameters
    errors = []
    if getattr(value, "_is_protocol", False):
        return []  # has no arguments of its own
    if hasattr(value, "_fields"):  # a state: what it holds, in a sentence
        return [] if docstring.count(" ") > 2 else [f"{name} does not say what it holds"]
    arguments = section(docstring, "Args")
    if parameters and arguments is None:
        errors.append(f"{name} has arguments but no section 'Args:'")
    for parameter in parameters.values():
        if arguments and not re.search(rf"^\s+\**{parameter.name}\b.*:", arguments, re.MULTILINE):
            errors.append(f"{name} does not say what {parameter.name!r} is")
        if parameter.annotation is parameter.empty:
            errors.append(f"{name} does not annotate {parameter.name!r}")
    if not inspect.isclass(value):
        if section(docstring, "Returns") is None:
            errors.append(f"{name} has no section 'Returns:'")
        if signature.return_annotation is signature.empty:
            errors.append(f"{name} does not annotate what it returns")
    return errors


def functions_of(module: ModuleType) -> list[str]:
    """The public functions of a module: those that Sphinx lists as its members."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    functions = inspect.getmembers(module, inspect.isfunction)
    return [name for name, value in functions if value.__module__ == module.__name__ and not name.startswith("_")]


def self_explaining() -> list[str]:
    """What has a signature: functions and classes, and the functions of public modules with their module's name."""
    values = {name: getattr(muon_optax, name) for name in muon_optax.__all__}
    members = [f"{name}.{member}" for name in modules() for member in functions_of(values[name])]
    return [name for name, value in values.items() if kind_of(value) in ("function", "class")] + members


def modules() -> list[str]:
    return [name for name in muon_optax.__all__ if kind_of(getattr(muon_optax, name)) == "module"]


def test_exported_names_are_the_documented_names() -> None:
    names = [name for name, _ in documented()]
    assert sorted(names) == sorted(muon_optax.__all__)
    assert len(names) == len(set(names))


def test_documented_with_the_right_directive() -> None:
    # Sphinx renders a function under `autodata` without its arguments and says nothing.
    assert dict(documented()) == {name: kind_of(getattr(muon_optax, name)) for name in muon_optax.__all__}


def test_nothing_public_is_left_out_of_all() -> None:
    # Files of the package are attributes of it, too: those without an underscore are public.
    # Integrations are attributes only once somebody has imported them.
    names = [name for name in vars(muon_optax) if not name.startswith("_") and name not in INTEGRATIONS]
    assert sorted(names) == sorted(muon_optax.__all__)


def test_functions_of_public_modules_are_documented() -> None:
    assert modules() == ["diagnostics", "recipes"]
    assert sorted(WITH_MEMBERS.findall(API_PAGE.read_text("utf-8"))) == modules()
    assert functions_of(muon_optax.diagnostics) == [
        "RecordState",
        "Recording",
        "finite_or_raise",
        "moved_without_gradient",
        "nonfinite_counts",
        "orthogonality_error",
        "predicted_update_rms",
        "raise_if_nonfinite",
        "record",
        "recorded",
        "update_rms",
    ]


@pytest.mark.parametrize("name", self_explaining())
def test_docstring_and_annotations(name: str) -> None:
    assert docstring_errors(name, attrgetter(name)(muon_optax)) == []


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integrations_are_documented_and_explain_themselves(name: str) -> None:
    module = importlib.import_module(f"muon_optax.{name}")
    public, page = functions_of(module), API_PAGE.read_text("utf-8")
    assert public
    listed = re.search(rf"^\.\. currentmodule:: muon_optax\.{name}\n((?:.*\n)*)", page, re.MULTILINE)
    assert listed is not None
    for function in public:
        assert re.search(rf"^\.\. autofunction:: {function}$", listed[1], re.MULTILINE), function
        assert docstring_errors(function, getattr(module, function)) == []


def test_importing_brings_in_no_framework() -> None:
    frameworks = ("flax", "equinox", "haiku", "matplotlib")
    program = f"import sys, muon_optax; print([name for name in {frameworks} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
