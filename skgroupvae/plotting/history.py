"""Training history: the loss and its parts, or several models and runs (Figure 5 of the CxVAE paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from skgroupvae.plotting._style import DARK, Display, finish, legend_beside, point_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HistoryDisplay", "plot_history"]

# The parts add up to the loss, the last one multiplied by the weight of the regularizer.
_PARTS = ("loss", "-reconstruction", "kl_u", "kl_v", "mutual_information")
_HELD_OUT = "validation_"
# Number of markers on a curve; they tell curves apart in gray.
_N_MARKERS = 8
_DASHED: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}


@dataclass(kw_only=True, eq=False, repr=False)
class HistoryDisplay(Display):
    """Training history by epoch: solid for the training rows, dashed for held-out groups.

    Make one with :meth:`from_estimator` (the loss and its parts of one fit) or :meth:`from_histories` (one
    column of several models, with a band where there are several runs; Figure 5 of the CxVAE paper).

    Parameters
    ----------
    curves : dict of str to DataFrame of shape (n_epochs, n_runs)
        By label: one column per run, indexed by epoch, in nats per row.
    held_out : dict of str to DataFrame of shape (n_epochs, n_runs)
        The same for held-out groups, for some or none of the labels.
    name : str
        What is drawn: the default label of the vertical axis.

    Attributes
    ----------
    ax_ : Axes
        Where `plot` drew last.
    figure_ : Figure
        The figure of `ax_`.

    Examples
    --------
    >>> from skgroupvae import GroupVAE
    >>> from skgroupvae.datasets import make_exam_scores
    >>> from skgroupvae.plotting import HistoryDisplay
    >>> data = make_exam_scores(20, random_state=0)
    >>> model = GroupVAE(decoder="mlp", early_stopping=True, max_epochs=3, random_state=0)
    >>> model = model.fit(data.X, groups=data.groups)
    >>> display = HistoryDisplay.from_estimator(model)
    >>> list(display.curves)
    ['loss', '-reconstruction', 'kl_u', 'kl_v', 'mutual_information']
    """

    curves: dict[str, pd.DataFrame]
    held_out: dict[str, pd.DataFrame] = field(default_factory=dict)
    name: str = "loss"

    @classmethod
    def from_estimator(cls, estimator: Any, *, columns: Sequence[str] | None = None, **options: Any) -> Self:
        """Draw the loss of a fit and its parts.

        Parameters
        ----------
        estimator : fitted GroupVAE or CxVAERegressor
            Has `history_`.
        columns : sequence of str, optional
            Columns of `history_`; a leading minus draws the negative. None takes the loss and the parts
            that add up to it, except those that are 0 throughout.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : HistoryDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the fit had no epochs, or `history_` has no such column.
        """
        cls._check_estimator(estimator, "history_")
        history = estimator.history_
        if len(history) == 0:
            raise ValueError(
                "estimator.history_ has no epochs (the fit kept the linear model); there is nothing to draw"
            )
        if columns is None:
            columns = [part for part in _PARTS if _is_there(history, part.removeprefix("-"))]
        elif isinstance(columns, str) or not len(columns):
            raise ValueError(f"columns must be a list of columns of history_, got {columns!r}")
        curves = {column: _runs("history_", history, column) for column in columns}
        held_out = {
            column: _runs("history_", history, _held_out(column))
            for column in columns
            if _held_out(column).removeprefix("-") in history
        }
        name = "loss and its parts" if len(curves) > 1 else next(iter(curves))
        return cls(curves=curves, held_out=held_out, name=name).plot(**options)

    @classmethod
    def from_histories(
        cls,
        histories: pd.DataFrame | Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
        *,
        column: str = "loss",
        **options: Any,
    ) -> Self:
        """Draw one column of the histories of one or several models.

        Parameters
        ----------
        histories : DataFrame, or mapping of label to DataFrame or list of DataFrames
            `history_` of one fit; or, by model, that of one fit or of several runs. With several runs the
            line is their median and the band is their range.
        column : str, default="loss"
            Which column of the histories, in nats per row; a leading minus draws the negative.
        **options
            Passed to :meth:`plot`: `ax`, `xlabel`, `ylabel`.

        Returns
        -------
        display : HistoryDisplay

        Raises
        ------
        ValueError
            If there is no history, or one has no such column.
        """
        by_label = histories if isinstance(histories, Mapping) else {"": histories}
        if not by_label:
            raise ValueError("histories is empty; pass history_ of at least one fit")
        curves = {
            label: _runs(f"histories[{label!r}]" if label else "histories", history, column)
            for label, history in by_label.items()
        }
        return cls(curves=curves, name=column).plot(**options)

    def plot(self, ax: Axes | None = None, *, xlabel: str | None = None, ylabel: str | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, optional
            Labels of the axes; None takes "epoch" and what is drawn, in nats per row.

        Returns
        -------
        display : HistoryDisplay
        """
        ax = self._start(ax)
        for nth, ((label, table), (color, marker)) in enumerate(
            zip(self.curves.items(), point_styles(), strict=False)
        ):
            every = max(1, len(table) // _N_MARKERS)
            # Markers at different epochs, so that those of close curves do not hide each other.
            style = {"color": color, "marker": marker, "markersize": 5, "markevery": (nth % every, every)}
            _draw(ax, table, style, _words(label))
            if label in self.held_out:
                _draw(ax, self.held_out[label], style | _DASHED, "")
        if self.held_out:
            ax.plot([], [], color=DARK, label="training")
            ax.plot([], [], color=DARK, label="held out", **_DASHED)
        finish(ax, xlabel, ylabel, "epoch", f"{_words(self.name)} / nats per row")
        ax.locator_params(axis="x", integer=True)
        if any(self.curves):
            legend_beside(ax)
        return self


def plot_history(
    histories: pd.DataFrame | Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    *,
    column: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """Axes of :meth:`HistoryDisplay.from_histories`, which has the same arguments."""
    return HistoryDisplay.from_histories(histories, column=column, ax=ax).ax_


def _draw(ax: Axes, table: pd.DataFrame, style: dict[str, Any], label: str) -> None:
    """Median of the runs, and their range if there are several."""
    ax.plot(table.index, table.median(axis=1), label=label or None, **style)
    if table.shape[1] > 1:
        low, high = table.min(axis=1), table.max(axis=1)
        ax.fill_between(table.index, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _is_there(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool((history[column] != 0).any())


def _held_out(column: str) -> str:
    """Name of the column of the held-out groups, with the leading sign."""
    sign = column[: column.startswith("-")]
    return f"{sign}{_HELD_OUT}{column.removeprefix('-')}"


def _words(column: str) -> str:
    return column.replace("_", " ")


def _runs(where: str, history: Any, column: str) -> pd.DataFrame:
    """The column of each run side by side, by epoch; NaN after the end of a run that stopped early."""
    tables = list(history) if isinstance(history, (list, tuple)) else [history]
    if not tables:
        raise ValueError(f"{where} is empty; pass history_ of at least one fit")
    name, sign = column.removeprefix("-"), -1.0 if column.startswith("-") else 1.0
    for table in tables:
        if not isinstance(table, pd.DataFrame):
            raise ValueError(f"{where} must be a DataFrame or a list of them, got {type(table).__name__}")
        if name not in table.columns:
            raise ValueError(f"{where} has no column {name!r}; its columns are {list(table.columns)}")
    return pd.concat([sign * table[name] for table in tables], axis=1)
