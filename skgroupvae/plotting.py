"""Pictures of grouped data, translations and fits: arrays or DataFrames in, matplotlib Axes out.

Needs matplotlib (extra ``plot``), imported only when a function is called. Whatever a colour tells, a line
style or a marker tells too, so that the pictures can be read in grey.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_group_densities", "plot_history", "plot_translation"]

# Okabe and Ito's palette, ordered so that neighbours also differ in lightness.
_COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000")
_LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_GREY = "0.7"
_N_GRID = 256
# Translation lines drawn at most: more make a grey block that shows nothing.
_MAX_LINES = 200


def plot_group_densities(
    X: Any,
    groups: Iterable[Hashable],
    *,
    ax: Axes | None = None,
    xlabel: str | None = None,
    max_groups: int = 6,
) -> Axes:
    """Density of one column in each group (Figure 2 of the CxVAE paper).

    Parameters
    ----------
    X : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
        One number a row, in the units of the axis.
    groups : array-like of shape (n_rows,)
        Group label of each row.
    ax : Axes, optional
        Where to draw; None makes a new figure.
    xlabel : str, optional
        Label of the horizontal axis; None takes the name of the Series or column, if there is one.
    max_groups : int, default=6
        Draw this many groups at most, the first to appear in `groups`.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If X has more than one column, is empty or not finite, or differs in length from `groups`.

    Examples
    --------
    >>> from skgroupvae.datasets import make_exam_scores
    >>> data = make_exam_scores(4, random_state=0)
    >>> ax = plot_group_densities(data.X, data.groups, xlabel="score / points")
    >>> len(ax.lines)
    4
    """
    values, name = _column(X, "X")
    # A Series keeps labels that are tuples as one label each, where an array would make columns of them.
    codes, labels = pd.factorize(pd.Series(list(groups)).to_numpy())
    if codes.shape != values.shape:
        raise ValueError(f"groups has {len(codes)} labels but X has {len(values)} rows; pass one label a row")
    if (codes < 0).any():
        raise ValueError("groups has missing labels; drop those rows or label them")
    if max_groups < 1:
        raise ValueError(f"max_groups must be at least 1, got {max_groups}")
    ax = _axes(ax)
    shown = codes < max_groups
    grid = _grid(values[shown])
    styles = cycle(zip(_COLORS, _LINE_STYLES, strict=True))
    for code, (color, style) in zip(range(min(max_groups, len(labels))), styles, strict=False):
        own = values[codes == code]
        label = f"{labels[code]} ({len(own)} {'row' if len(own) == 1 else 'rows'})"
        ax.plot(grid, _density(own, grid), color=color, linestyle=style, label=label)
    left_out = len(labels) - max_groups
    title = "group" if left_out <= 0 else f"group ({left_out} more not shown)"
    _finish_densities(ax, _label(xlabel, name))
    ax.legend(title=title, frameon=False)
    return ax


def plot_translation(
    source: Any,
    target: Any,
    translated: Any,
    *,
    ax: Axes | None = None,
    xlabel: str | None = None,
    labels: tuple[str, str, str] = ("source", "target", "translated"),
) -> Axes:
    """Rows of a source group and their translation into a target group (Figures 3 and 4 of the CxVAE paper).

    The source's density stands above and those of the target and of the translated rows hang below. A grey
    line joins each source row to its translation. In a good translation the lines do not cross, as the
    instance code is kept, and the two densities below agree, as the group code is the target's.

    Parameters
    ----------
    source : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
        Rows of the source group, in the units of the axis.
    target : array-like, Series or DataFrame of shape (n_target_rows,) or (n_target_rows, 1)
        Rows of the target group.
    translated : array-like, Series or DataFrame of shape (n_rows,) or (n_rows, 1)
        The rows of `source`, in the same order, translated.
    ax : Axes, optional
        Where to draw; None makes a new figure.
    xlabel : str, optional
        Label of the horizontal axis; None takes the name of the source's Series or column, if there is one.
    labels : tuple of three str
        What the legend calls the source, the target and the translated rows.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If an argument has more than one column, is empty or not finite, or `source` and `translated` differ
        in length.
    """
    before, name = _column(source, "source")
    wanted, _ = _column(target, "target")
    after, _ = _column(translated, "translated")
    if before.shape != after.shape:
        raise ValueError(
            f"translated has {len(after)} rows but source has {len(before)}; pass the translation of each row"
        )
    if len(labels) != 3:
        raise ValueError(f"labels must name source, target and translated, got {len(labels)} labels")
    ax = _axes(ax)
    grid = _grid(before, wanted, after)
    above, below, moved = (_density(part, grid) for part in (before, wanted, after))
    # The halves have a height of 1 each, so that a narrow target does not flatten the source; the two
    # densities below share one scale, as they are there to be compared.
    lowest = max(below.max(), moved.max())
    above, below, moved = above / above.max(), -below / lowest, -moved / lowest
    gap = 0.6
    chosen = np.unique(np.linspace(0, len(before) - 1, _MAX_LINES).round().astype(int))
    order = np.argsort(before, kind="stable")[chosen]
    ax.plot(
        np.stack([before[order], after[order]]),
        np.array([[gap], [-gap]]),
        color=_GREY,
        linewidth=0.6,
        zorder=1,
    )
    ax.scatter(before[order], np.full(len(order), gap), s=8, marker="|", color="0.4", linewidth=0.8, zorder=2)
    ax.scatter(after[order], np.full(len(order), -gap), s=8, marker="|", color="0.4", linewidth=0.8, zorder=2)
    curves = (
        (above, gap, "-", _COLORS[0], 0.2),
        (below, -gap, "--", "black", 0.0),
        (moved, -gap, "-", _COLORS[2], 0.2),
    )
    for (height, base, style, color, alpha), label in zip(curves, labels, strict=True):
        # Where a density is next to nothing its line would only thicken the base line.
        line = np.where(np.abs(height) > 2e-3, base + height, np.nan)
        ax.plot(grid, line, color=color, linestyle=style, linewidth=1.8, label=label, zorder=3)
        ax.fill_between(grid, base, base + height, color=color, alpha=alpha, linewidth=0, zorder=0)
        ax.axhline(base, color=_GREY, linewidth=0.6, zorder=0)
    ax.set_yticks([])
    _finish_densities(ax, _label(xlabel, name))
    ax.legend(frameon=False)
    return ax


def plot_history(
    histories: pd.DataFrame | Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    *,
    column: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """One figure of a fit by epoch, for one fit or several models (Figure 5 of the CxVAE paper).

    Parameters
    ----------
    histories : DataFrame, or mapping of label to DataFrame or list of DataFrames
        `history_` of one fit; or, by model, that of one fit or of several runs. Of several runs the line is
        the median and the band reaches from the lowest to the highest.
    column : str, default="loss"
        Which column of the histories, in nats per row.
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is no history, or one has no such column.
    """
    by_label = histories if isinstance(histories, Mapping) else {"": histories}
    runs = {label: _runs(label, history, column) for label, history in by_label.items()}
    if not runs:
        raise ValueError("histories is empty; pass history_ of at least one fit")
    ax = _axes(ax)
    styles = cycle(zip(_COLORS, _LINE_STYLES, strict=True))
    for (label, table), (color, style) in zip(runs.items(), styles, strict=False):
        ax.plot(table.index, table.median(axis=1), color=color, linestyle=style, label=label or None)
        if table.shape[1] > 1:
            low, high = table.min(axis=1), table.max(axis=1)
            ax.fill_between(table.index, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{column.replace('_', ' ')} / nats per row")
    ax.spines[["top", "right"]].set_visible(False)
    if any(runs):
        ax.legend(frameon=False)
    return ax


def _runs(label: str, history: Any, column: str) -> pd.DataFrame:
    """The column of each run side by side, by epoch; a run that stopped early has no value after its end."""
    tables = list(history) if isinstance(history, (list, tuple)) else [history]
    where = f"histories[{label!r}]" if label else "histories"
    if not tables:
        raise ValueError(f"{where} is empty; pass history_ of at least one fit")
    for table in tables:
        if not isinstance(table, pd.DataFrame):
            raise ValueError(f"{where} must be a DataFrame or a list of them, got {type(table).__name__}")
        if column not in table.columns:
            raise ValueError(f"{where} has no column {column!r}; its columns are {list(table.columns)}")
    return pd.concat([table[column] for table in tables], axis=1)


def _column(values: Any, name: str) -> tuple[NDArray[np.float64], str | None]:
    """Finite values (n_rows,) of one column, and its name where it has one."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be one column of numbers, got shape {array.shape}; choose one column")
    if len(array) == 0:
        raise ValueError(f"{name} is empty; pass at least one row")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite values; drop those rows first")
    if isinstance(values, pd.DataFrame):
        return array, str(values.columns[0])
    own = getattr(values, "name", None)
    return array, None if own is None else str(own)


def _density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel density estimate on the grid, by normals of the width of Scott's rule."""
    step = grid[1] - grid[0]
    # A single row or constant values have no width by that rule: three steps of the grid make a narrow peak.
    width = max(3.0 * step, values.std() * len(values) ** -0.2)
    # Values are counted at the nearest grid point, so that 100,000 rows cost no more than 100.
    counts = np.histogram(values, np.append(grid, grid[-1] + step) - 0.5 * step)[0]
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
    return counts @ kernel / len(values)


def _grid(*samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points over all samples, with room for the tails of their densities."""
    values = np.concatenate(samples)
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low) or max(1.0, abs(high)) * 0.05
    return np.linspace(low - margin, high + margin, _N_GRID)


def _label(xlabel: str | None, name: str | None) -> str:
    return xlabel if xlabel is not None else name or "value"


def _finish_densities(ax: Axes, xlabel: str) -> None:
    """What every picture of densities has in common."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel("density")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0)


def _axes(ax: Axes | None) -> Axes:
    """The axes to draw on: those given, or those of a new figure."""
    if ax is not None:
        return ax
    return _pyplot().subplots(layout="constrained")[1]


def _pyplot() -> Any:
    """matplotlib.pyplot, imported only when something is drawn."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plots need matplotlib; install it with: pip install 'skgroupvae[plot]'") from None
    return plt
