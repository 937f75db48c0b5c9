"""The public names are sorted, importable, listed in the documentation, and documented completely."""

import inspect
import re
from pathlib import Path

import pytest

import rnla
import rnla.decomposition
import rnla.impute
import rnla.optim
import rnla.plotting
import rnla.tensors
import rnla.torch

API_PAGE = Path(__file__).parents[1] / "docs" / "api.rst"
SUBMODULES = {
    "datasets": rnla.datasets,
    "decomposition": rnla.decomposition,
    "impute": rnla.impute,
    "optim": rnla.optim,
    "optim.mlp": rnla.optim.mlp,
    "plotting": rnla.plotting,
    "sketch": rnla.sketch,
    "tensors": rnla.tensors,
    "testing": rnla.testing,
    "torch": rnla.torch,
}


def public_names(module):
    """Return ``__all__``, or without one the functions and classes that the module itself defines."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return vars(module).get("__all__") or [name for name in own if name[0] != "_"]


def public_objects():
    """Every public class and function by its name below ``rnla``."""
    found = {name: getattr(rnla, name) for name in rnla.__all__ if name not in {*SUBMODULES, "__version__"}}
    for prefix, module in SUBMODULES.items():
        names = (name for name in public_names(module) if f"{prefix}.{name}" not in SUBMODULES)
        found.update({f"{prefix}.{name}": getattr(module, name) for name in names})
    return found


PUBLIC = public_objects()
FUNCTIONS = [name for name, found in PUBLIC.items() if inspect.isfunction(found)]


def documented_parameters(docstring):
    """Names in the Parameters section of a numpydoc docstring, in order."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+$|\Z)", docstring, re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^(\S[^:\n]*?)(?: :.*)?$", section[1], re.MULTILINE) if section else []
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def test_documented_parameters_reads_every_form():
    parameters = "Parameters\n----------\nA : array\n    Text: more.\nk, l : int\n    Two.\n**options\n    Rest.\n"
    assert documented_parameters(f"Do it.\n\n{parameters}\nReturns\n-------\nint") == ["A", "k", "l", "options"]
    assert documented_parameters(f"Do it.\n\n{parameters}") == ["A", "k", "l", "options"]
    assert documented_parameters("Do it.\n\nReturns\n-------\nint\n    One.") == []


def test_all_is_sorted_and_without_repetition():
    assert rnla.__all__ == sorted(set(rnla.__all__))


def test_all_is_what_can_be_imported():
    reachable = {name for name, value in vars(rnla).items() if name[0] != "_" and not inspect.ismodule(value)}
    modules = {name for name in rnla.__all__ if inspect.ismodule(getattr(rnla, name))}
    assert reachable | modules | {"__version__"} == set(rnla.__all__)
    assert modules <= set(SUBMODULES)


def test_the_api_page_lists_the_public_names_and_no_other():
    listed = re.findall(r"^   ([A-Za-z_][\w.]*)$", API_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_a_summary_and_examples(name):
    docstring = inspect.getdoc(PUBLIC[name]) or ""
    assert docstring.partition("\n")[0].endswith(".")
    assert re.search(r"^Examples\n--------\n(.|\n)*^>>> ", docstring, re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_names_the_parameters_of_the_signature(name):
    function = PUBLIC[name]
    assert documented_parameters(inspect.getdoc(function)) == list(inspect.signature(function).parameters)
