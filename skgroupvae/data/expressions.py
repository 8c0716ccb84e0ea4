"""Which Python expressions a formula may hold: a short list, checked before formulaic evaluates anything.

formulaic evaluates the calls of a formula with ``eval``, some of them already while it reads the text. A
saved estimator holds such text, and reading it may run no code, whoever wrote it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

__all__ = ["Expression", "read_expression"]

# Splines, polynomials, categories: a column or an expression first, then settings.
_WITH_SETTINGS = frozenset({"bs", "cr", "cs", "cc", "poly", "scale", "standardize", "C"})
# Columns alone: with an argument more a function of numpy would write where it is told to.
_OF_ONE = frozenset(
    {
        *("I", "center", "log", "log2", "log10", "exp", "exp2", "exp10"),
        *("np.abs", "np.sign", "np.sqrt", "np.cbrt", "np.square", "np.floor", "np.ceil", "np.rint"),
        *("np.exp", "np.exp2", "np.expm1", "np.log", "np.log2", "np.log10", "np.log1p"),
        *("np.sin", "np.cos", "np.tan", "np.arcsin", "np.arccos", "np.arctan"),
        *("np.sinh", "np.cosh", "np.tanh", "np.arcsinh"),
    }
)
_OF_TWO = frozenset({"np.minimum", "np.maximum", "np.power", "np.arctan2", "np.hypot"})
_CODINGS = frozenset(
    {
        *("Treatment", "Sum", "Helmert", "Diff", "Poly"),
        *(f"contr.{name}" for name in ("treatment", "sum", "helmert", "diff", "poly", "SAS")),
    }
)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)


@dataclass
class Expression:
    """Columns that an expression reads, in order; `categories` are those whose values are categories."""

    columns: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)


def read_expression(text: str) -> Expression:
    """Columns of an expression; a ValueError that names `formula` where it holds what is not on the list."""
    if "`" in text:
        raise ValueError(
            f"formula has a backquoted name inside the expression {text!r}; rename that column of the table"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"formula has the expression {text!r}, which is not valid; correct it") from error
    found = Expression()
    _read(tree.body, found)
    found.columns, found.categories = (list(dict.fromkeys(x)) for x in (found.columns, found.categories))
    return found


def _read(node: ast.expr, found: Expression) -> None:
    """An expression of columns."""
    match node:
        case ast.Name(id=name) if not name.startswith("__"):
            found.columns.append(name)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() | ast.Invert(), operand=operand):
            _read(operand, found)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
            # Constants to the power of constants can be made to run for ever.
            if isinstance(op, ast.Pow) and not (_has_column(left) or _has_column(right)):
                raise _refused(node)
            _read(left, found)
            _read(right, found)
        case ast.Compare(left=left, comparators=others):
            for part in (left, *others):
                if not _is_text(part):
                    _read(part, found)
        case ast.Constant(value=bool() | int() | float()):
            pass
        case ast.Call():
            _read_call(node, found)
        case _:
            raise _refused(node)


def _read_call(node: ast.Call, found: Expression) -> None:
    name = _dotted(node.func)
    arguments, settings = node.args, node.keywords
    if name in _WITH_SETTINGS and arguments:
        for setting in (*arguments[1:], *(keyword.value for keyword in settings)):
            _check_setting(setting)
        # `_state` and its like are formulaic's own; None is `**`.
        if any(keyword.arg is None or keyword.arg.startswith("_") for keyword in settings):
            raise _refused(node)
        arguments = arguments[:1]
    elif settings or name not in (_OF_ONE if len(arguments) == 1 else _OF_TWO if len(arguments) == 2 else ()):
        raise ValueError(
            f"formula has {ast.unparse(node)!r}, but may call only {', '.join(sorted(_WITH_SETTINGS))}, "
            f"and of columns alone {', '.join(sorted(_OF_ONE | _OF_TWO))}; compute others in the table"
        )
    for argument in arguments:
        _read(argument, found)
    if name == "C" and isinstance(arguments[0], ast.Name):
        found.categories.append(arguments[0].id)


def _check_setting(node: ast.expr) -> None:
    """A number, a text, True, False, None, a list of them, or how categories are coded."""
    match node:
        case ast.Constant(value=None | bool() | int() | float()):
            return
        case ast.Constant(value=str()) if _is_text(node):
            return
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                _check_setting(item)
        case ast.Name() | ast.Attribute() if _dotted(node) in _CODINGS:
            return
        case ast.Call(func=of, args=arguments, keywords=keywords) if _dotted(of) in _CODINGS:
            for item in (*arguments, *(keyword.value for keyword in keywords)):
                _check_setting(item)
            if any(keyword.arg is None for keyword in keywords):
                raise _refused(node)
        case _:
            raise _refused(node)


def _is_text(node: ast.expr) -> bool:
    """A text constant without the characters that would end it where formulaic quotes it once more."""
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.isprintable()
        and not set(node.value) & set("\"'\\")
    )


def _has_column(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) for part in ast.walk(node))


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return f"{module}.{name}"
    return ""


def _refused(node: ast.expr) -> ValueError:
    return ValueError(
        f"formula has {ast.unparse(node)!r} where only columns, numbers, arithmetic, comparisons and the "
        "listed calls with constant settings may stand; compute such a column in the table"
    )
