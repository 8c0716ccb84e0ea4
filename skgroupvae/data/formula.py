"""What the text of a formula says: outcome, fixed terms, and random parts ``(1 + a | group)``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skgroupvae.data.expressions import Expression, read_expression
from skgroupvae.data.labels import split_group_column
from skgroupvae.data.tables import as_pandas, check_unique_columns, some

__all__ = ["Formula", "RandomPart", "formulaic", "read_formula"]

_LITERAL = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")


class RandomPart(NamedTuple):
    """One random part: ``(1 + a | group)``.

    Attributes
    ----------
    terms : list of int
        Positions in :attr:`Formula.terms` of those that vary by group, beside the intercept.
    groups : list of str
        Columns behind the bar.
    """

    terms: list[int]
    groups: list[str]


@dataclass(frozen=True)
class Formula:
    """What a formula asks for, as plain values.

    Attributes
    ----------
    outcome : str or None
        Column on the left side.
    terms : list
        Fixed terms, the intercept first; each is a list of factors, a factor the list [text, how formulaic
        evaluates it]: "lookup" (a column), "python" (an expression) or "literal" (a number).
    random : list of RandomPart
        One for each bar, in the order of the text.
    """

    outcome: str | None
    terms: list[list[list[str]]]
    random: list[RandomPart]

    def __post_init__(self) -> None:
        """Refuse terms that would make formulaic run what is not on the list: they may come from a file."""
        for text, method in self._factors():
            if method == "python":
                read_expression(text)
            elif method != "lookup" and not (method == "literal" and _LITERAL.fullmatch(text)):
                raise ValueError(f"formula has the factor {text!r}, which is no column, number or expression")
        # A file has lists for tuples.
        object.__setattr__(self, "random", [RandomPart(*part) for part in self.random])
        for part in self.random:
            if not all(type(term) is int and 0 < term < len(self.terms) for term in part.terms):
                raise ValueError(f"formula has the random terms {part.terms!r}, which are no terms of it")

    @property
    def columns(self) -> list[str]:
        """Columns of the table that the fixed terms read, in order."""
        return self._expression().columns

    @property
    def categories(self) -> list[str]:
        """Those of them whose values are categories because the formula says so."""
        return self._expression().categories

    def split(self, X: Any, group_column: Any, groups: Any) -> tuple[pd.DataFrame, list[Any]]:
        """Columns that the fixed terms read, and the labels of each grouping factor.

        Parameters
        ----------
        X : DataFrame of shape (N, columns)
            The table.
        group_column, groups
            As for :func:`~skgroupvae.data.labels.split_group_column`, of a formula without random parts;
            `groups` may also repeat what the table has.

        Returns
        -------
        frame : DataFrame
        labels : list of labels of shape (N,)
            One for each random part; without any, those of `group_column` or `groups` alone (may be None).
        """
        own = [part.groups for part in self.random]
        frame = self._frame(X, [*self.columns, *(name for names in own for name in names)])
        if not own:
            return frame[self.columns], [split_group_column(frame, group_column, groups)[1]]
        labels = [split_group_column(frame, names if len(names) > 1 else names[0], None)[1] for names in own]
        # A search or a plot passes them beside the table.
        if groups is not None and not any(
            np.array_equal(np.asarray(groups), np.asarray(part)) for part in labels
        ):
            bars = " and ".join(f"(... | {':'.join(names)})" for names in own)
            raise ValueError(
                f"groups= is given, but formula has the groups {bars}, which are others; leave groups out"
            )
        return frame[self.columns], labels

    def outcome_of(self, X: Any) -> NDArray:
        """Values (N,) of the outcome's column."""
        return np.asarray(self._frame(X, [self.outcome])[self.outcome])

    def _frame(self, X: Any, wanted: list[Any]) -> pd.DataFrame:
        X = as_pandas(X)
        if not isinstance(X, pd.DataFrame):
            raise ValueError(
                f"formula needs a table with named columns, got {type(X).__name__}; pass a pandas or polars "
                "DataFrame"
            )
        check_unique_columns(X)
        missing = [name for name in dict.fromkeys(wanted) if name not in X.columns]
        if missing:
            raise ValueError(
                f"formula names {some(missing)}, which X does not have; its columns are "
                f"{some(list(X.columns))}"
            )
        return X

    def _factors(self) -> list[list[str]]:
        return [factor for term in self.terms for factor in term]

    def _expression(self) -> Expression:
        found = Expression()
        for text, method in self._factors():
            if method == "literal":
                continue
            part = Expression([text]) if method == "lookup" else read_expression(text)
            found.columns += part.columns
            found.categories += part.categories
        return Expression(*(list(dict.fromkeys(names)) for names in (found.columns, found.categories)))


def read_formula(text: str) -> Formula:
    """Read a formula; a ValueError that names `formula` and the remedy where it cannot be used."""
    outcome, right = _sides(text)
    fixed, parts = _split_bars(right)
    terms = _terms(fixed, "")
    keys = [_key(term) for term in terms]
    random = []
    for varying_text, groups in parts:
        varying = _terms(varying_text, " in its random part")
        unknown = [":".join(f for f, _ in term) for term in varying if _key(term) not in keys]
        if unknown:
            raise ValueError(
                f"formula lets {some(unknown)} vary by group, which its fixed part does not have; add them "
                "there too"
            )
        random.append(RandomPart([keys.index(_key(term)) for term in varying][1:], groups))
    formula = Formula(outcome, terms, random)
    if outcome in formula.columns:
        raise ValueError(f"formula has {outcome!r} on both sides; take it from one of them")
    return formula


def formulaic() -> Any:
    """The package, which is an extra."""
    try:
        import formulaic as package
    except ImportError as error:
        raise ImportError('formula= needs formulaic; pip install "skgroupvae[formula]"') from error
    return package


def _tokens(text: str) -> list[Any]:
    """formulaic's tokens, all of them harmless: nothing else of formulaic sees the text before this."""
    formulaic()
    from formulaic.parser.algos.tokenize import tokenize

    try:
        tokens = list(tokenize(text))
    except Exception as error:
        _cannot_read(text, error)
    for token in tokens:
        if token.kind.value == "python":
            read_expression(token.token)
        elif token.token == ".":
            raise ValueError("formula has '.' for all other columns; name the columns")
    return tokens


def _sides(text: str) -> tuple[str | None, str]:
    """Outcome and the text of the right side."""
    tokens = _tokens(text)
    at = next((i for i, token in enumerate(tokens) if "~" in token.token and _is(token, "operator")), None)
    if at is None:
        raise ValueError(f"formula={text!r} has no '~'; write 'outcome ~ covariates' or '~ covariates'")
    left, tilde = tokens[:at], tokens[at]
    if tilde.token[0] != "~" or len(left) > 1 or (left and not _is(left[0], "name")):
        raise ValueError(
            "formula must have one column's name, or nothing, left of '~'; transform the outcome beforehand, "
            "for instance with TransformedTargetRegressor and a formula that begins with '~'"
        )
    return (left[0].token if left else None), text[text.index("~", tilde.source_start) + 1 :]


def _split_bars(text: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """Text of the fixed terms; and text of the random terms and columns of the groups of each bar."""
    tokens, opened, bars = _tokens(text), list[int](), list[tuple[int, int]]()
    for i, token in enumerate(tokens):
        if _is(token, "context"):
            opened = [*opened, i] if token.token in "([" else opened[:-1]
        if not _is(token, "operator"):
            continue
        if "~" in token.token:
            raise ValueError("formula has '~' twice; write one outcome and one list of covariates")
        if "||" in token.token:
            raise ValueError("formula has '||', but random effects are always correlated here; write '|'")
        if "|" in token.token:
            if len(opened) != 1 or tokens[opened[0]].token != "(" or token.token != "|":
                raise ValueError("formula has '|' outside of one random part; write it as '(1 + a | group)'")
            if not bars or bars[-1][0] != opened[0]:  # a second bar in one part is no group's name, see below
                bars.append((opened[0], i))
    fixed, done, parts = "", 0, []
    for start, bar in bars:
        cut, end, part = _random_part(text, tokens, start, bar)
        # Where nothing stands before it, the intercept in its place changes nothing.
        fixed += text[done:cut] if start else "1"
        done = end
        parts.append(part)
    return fixed + text[done:], parts


def _random_part(
    text: str, tokens: list[Any], start: int, bar: int
) -> tuple[int, int, tuple[str, list[str]]]:
    """Where in the text a random part begins (with its plus) and ends, and what it says."""
    closing = (i for i in range(bar, len(tokens)) if tokens[i].token == ")" and _is(tokens[i], "context"))
    end = next(closing, None)
    if end is None:
        raise ValueError(f"formula has {text.strip()!r}, which cannot be read: ')' is missing")
    group = tokens[bar + 1 : end]
    if len(group) != 1 or not _is(group[0], "name"):
        written = text[tokens[bar].source_end + 1 : tokens[end].source_start].strip()
        raise ValueError(
            f"formula has the groups {written!r}, but takes one column's name; for nested or crossed "
            "groups leave the random part out and pass group_column=['a', 'b'] and random_slopes"
        )
    before, after = tokens[max(0, start - 1) : start], tokens[end + 1 : end + 2]
    if any(token.token != "+" for token in before) or any(token.token not in "+-" for token in after):
        raise ValueError("formula must add its random part: 'fixed + (1 + a | group)'")
    first, last = tokens[start].source_start, tokens[end].source_start
    cut = before[0].source_start if before else first
    return cut, last + 1, (text[first + 1 : tokens[bar].source_start], [group[0].token])


def _terms(text: str, where: str) -> list[list[list[str]]]:
    """Terms of one side, the intercept first."""
    package = formulaic()
    try:
        # With no text there would be no side; the intercept is there anyway.
        terms = [list(term.factors) for term in package.Formula(text if text.strip() else "1")]
        found = [[[factor.expr, factor.eval_method.value] for factor in term] for term in terms]
    except Exception as error:
        _cannot_read(text, error)
    intercept = [["1", "literal"]]
    if intercept not in found:
        raise ValueError(
            f"formula takes the intercept away{where} (0 + or - 1), but the model always has one; leave "
            "that out"
        )
    return [intercept, *(term for term in found if term != intercept)]


def _key(term: list[list[str]]) -> frozenset[str]:
    return frozenset(text for text, _ in term)


def _is(token: Any, kind: str) -> bool:
    return token.kind.value == kind


def _cannot_read(text: str, error: Exception) -> NoReturn:
    reason = shorten(re.sub(r"\x1b\[[0-9;]*m", "", str(error)), 300)
    raise ValueError(f"formula has {text.strip()!r}, which cannot be read: {reason}") from error
