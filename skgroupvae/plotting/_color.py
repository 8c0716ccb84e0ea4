"""Colors of the points of a map, from one number or category per point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from skgroupvae.plotting._inputs import check_length, column_names
from skgroupvae.plotting._style import GRAY, point_styles

__all__ = ["categories", "color_by_group", "is_number", "point_style", "read_color"]

# Categories that get their own color and marker: as many as the palette has.
_MAX_CATEGORIES = 6


def categories(color: pd.Series) -> Iterator[tuple[str, NDArray[np.bool_], dict[str, Any]]]:
    """Label, points and style of each category, the most frequent first and the rest together in gray."""
    counts = color.value_counts()
    counts = counts[counts > 0]
    named = counts if len(counts) <= _MAX_CATEGORIES else counts.iloc[: _MAX_CATEGORIES - 1]
    values = color.to_numpy()
    size = point_style(int(named.sum()))
    for (category, count), (tint, marker) in zip(named.items(), point_styles(), strict=False):
        yield f"{category} ({count:,})", values == category, size | {"color": tint, "marker": marker}
    if len(named) < len(counts):
        label = f"{len(counts) - len(named)} others ({len(color) - named.sum():,})"
        small = point_style(len(color)) | {"color": GRAY, "marker": "o", "zorder": 0}
        yield label, ~color.isin(named.index).to_numpy(), small


def point_style(n_points: int) -> dict[str, Any]:
    """Size and opacity with which many points remain distinguishable."""
    return {
        "s": float(np.clip(12_000.0 / n_points, 6.0, 30.0)),
        "alpha": float(np.clip(2_500.0 / n_points, 0.35, 0.9)),
        "linewidth": 0,
        # Vector files with more points than this are too large to open.
        "rasterized": n_points > 5_000,
    }


def is_number(color: pd.Series) -> bool:
    return is_numeric_dtype(color) and not is_bool_dtype(color)


def read_color(color: Any, X: Any = None) -> pd.Series | None:
    """Numbers or categories as a named Series with the default index."""
    if color is None:
        return None
    name: Any = getattr(color, "name", None)
    if isinstance(color, str):
        if not hasattr(X, "columns") or color not in column_names(X):
            raise ValueError(f"color {color!r} is not a column of X; pass its name or one value per row")
        name, color = color, X[color]
    shade = pd.Series(color if isinstance(color, pd.Series) else np.asarray(color), name=name or "color")
    if shade.isna().any():
        raise ValueError("color has missing values; drop those rows or fill them")
    if X is not None:
        check_length(shade, len(X), "color", "X")
    return shade.reset_index(drop=True)


def color_by_group(color: pd.Series, codes: NDArray[np.intp]) -> pd.Series:
    """Mean of the numbers in each group, or the most frequent category."""
    by_group = color.groupby(codes)
    return by_group.mean() if is_number(color) else by_group.agg(lambda own: own.mode().iloc[0])
