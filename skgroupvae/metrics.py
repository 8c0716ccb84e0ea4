"""Disentanglement of codes and accuracy of translations, given the truth (section 5 of the CxVAE paper).

Every function takes arrays and returns a float. All errors are mean squared errors, in the squared units of
what is compared: smaller is better.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

__all__ = [
    "group_code_error",
    "instance_code_error",
    "reconstruction_error",
    "standard_error",
    "translation_error",
]

# Early stopping holds out a tenth of the rows; with fewer rows than this it would follow noise.
_MIN_PROBE_ROWS = 50


def reconstruction_error(X: ArrayLike, X_reconstructed: ArrayLike) -> float:
    """Mean squared error of reconstructed rows.

    Small values alone prove little: codes that copy X reconstruct X perfectly.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_features)
        Rows.
    X_reconstructed : array-like of shape (n_rows, n_features)
        Their reconstruction by a model, as from ``GroupVAE.reconstruct``.

    Returns
    -------
    error : float
        Mean over rows and columns.

    Raises
    ------
    ValueError
        If the two differ in shape or cannot be used.
    """
    return _mean_squared_error(X, X_reconstructed, "X", "X_reconstructed")


def translation_error(X_true: ArrayLike, X_translated: ArrayLike) -> float:
    """Mean squared error of translated rows (section 5.1 of the CxVAE paper).

    A few large squares may make up much of it, and errors of rows in the same group are correlated: pass the
    squared errors and the groups to :func:`standard_error` to see how precise it is.

    Parameters
    ----------
    X_true : array-like of shape (n_rows, n_features)
        Rows as they would have been in their target group: the true generating process at the true instance
        codes and the true group code of the target.
    X_translated : array-like of shape (n_rows, n_features)
        A model's translation, as from ``GroupVAE.translate``.

    Returns
    -------
    error : float
        Mean over rows and columns.

    Raises
    ------
    ValueError
        If the two differ in shape or cannot be used.
    """
    return _mean_squared_error(X_true, X_translated, "X_true", "X_translated")


def group_code_error(
    u_inferred: ArrayLike,
    u_true: ArrayLike,
    *,
    n_splits: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> float:
    """Error of the true group codes as predicted from the inferred ones ("u-pred" in the CxVAE paper).

    A regression network learns to predict the true codes from the inferred codes on some groups and is
    evaluated on the others. The scale, order, sign and number of the inferred codes therefore do not matter,
    and the more information they contain about the truth, the smaller the error (section 5 of the paper).

    Parameters
    ----------
    u_inferred : array-like of shape (n_groups, U)
        Inferred group codes, **one row per group**. ``GroupVAE.transform`` repeats u on the rows of a group:
        keep one of them, or the same group would be in the training and the test part.
    u_true : array-like of shape (n_groups, n_true_codes)
        True group codes, in the same order.
    n_splits : int, default=5
        Number of parts; each is predicted by a network trained on the other ``n_splits - 1`` parts.
    random_state : int, RandomState instance or None, default=None
        Seed of the parts and networks. Pass an int for the same error at every call.

    Returns
    -------
    error : float
        Mean squared error over held-out groups and over the components of the code.

    Raises
    ------
    ValueError
        If the codes differ in length, are fewer than 50 or cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from skgroupvae.metrics import group_code_error
    >>> u = np.random.default_rng(0).standard_normal((500, 2))
    >>> group_code_error(3 - u[:, ::-1], u, random_state=0) < 0.05
    True
    """
    return _probe_error(u_inferred, u_true, ("u_inferred", "u_true"), None, n_splits, random_state)


def instance_code_error(
    v_inferred: ArrayLike,
    v_true: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_splits: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> float:
    """Error of the true instance codes as predicted from the inferred ones ("v-pred" in the CxVAE paper).

    See :func:`group_code_error`; here a row is a row of X.

    Parameters
    ----------
    v_inferred : array-like of shape (n_rows, V)
        Inferred instance codes.
    v_true : array-like of shape (n_rows, n_true_codes)
        True instance codes, in the same order.
    groups : array-like of shape (n_rows,), optional
        Group label of each row. Whole groups are then held out, which matters if the codes identify groups.
    n_splits : int, default=5
        Number of parts; each is predicted by a network trained on the other ``n_splits - 1`` parts.
    random_state : int, RandomState instance or None, default=None
        Seed of the parts and networks. Pass an int for the same error at every call.

    Returns
    -------
    error : float
        Mean squared error over held-out rows and over the components of the code.

    Raises
    ------
    ValueError
        If the codes differ in length, are fewer than 50 or cannot be used, or there are too few groups.
    """
    return _probe_error(v_inferred, v_true, ("v_inferred", "v_true"), groups, n_splits, random_state)


def standard_error(squared_errors: ArrayLike, groups: ArrayLike | None = None) -> float:
    r"""Standard error of a mean of squared errors, clustered by group.

    The rows of a group share the error of its code, so that precision depends on the number of groups rather
    than the number of rows. With G groups of sizes :math:`K_i`, N rows in total and squared errors
    :math:`e_{ik}` of mean :math:`\bar e`,

    .. math:: \mathrm{se}^2 = \frac{G}{G - 1} \sum_i \Big(\sum_k (e_{ik} - \bar e)\Big)^2 \Big/ N^2 .

    Parameters
    ----------
    squared_errors : array-like of shape (n_rows,) or (n_rows, n_features)
        Squared errors; columns are averaged. The difference between the squared errors of two models on the
        same rows gives the standard error of the difference.
    groups : array-like of shape (n_rows,), optional
        Group label of each row. None treats rows as independent.

    Returns
    -------
    standard_error : float
        In the units of `squared_errors`.

    Raises
    ------
    ValueError
        If there are fewer than 2 groups, or the arguments cannot be used.

    Examples
    --------
    >>> from skgroupvae.metrics import standard_error
    >>> standard_error([1.0, 1.0, 3.0, 3.0]) < standard_error([1.0, 1.0, 3.0, 3.0], groups=[0, 0, 1, 1])
    True
    """
    errors = _table(squared_errors, "squared_errors").mean(axis=1)
    index = np.arange(errors.shape[0]) if groups is None else _group_index(groups, errors.shape[0])
    by_group = np.bincount(index, errors - errors.mean())
    n_groups = by_group.shape[0]
    if n_groups < 2:
        name, unit = ("squared_errors", "rows") if groups is None else ("groups", "distinct labels")
        raise ValueError(f"{name} must have at least 2 {unit}, got {n_groups}")
    return float(np.sqrt(n_groups / (n_groups - 1) * np.sum(by_group**2)) / errors.shape[0])


def _mean_squared_error(true: ArrayLike, estimate: ArrayLike, true_name: str, estimate_name: str) -> float:
    true, estimate = _table(true, true_name), _table(estimate, estimate_name)
    if estimate.shape != true.shape:
        raise ValueError(
            f"{estimate_name} must have the shape of {true_name}, got {estimate.shape} and {true.shape}"
        )
    return float(np.mean((estimate - true) ** 2))


def _probe_error(
    inferred: ArrayLike,
    true: ArrayLike,
    names: tuple[str, str],
    groups: ArrayLike | None,
    n_splits: int,
    random_state: int | np.random.RandomState | None,
) -> float:
    """Held-out mean squared error of a network from inferred to true codes."""
    inferred, true = _table(inferred, names[0]), _table(true, names[1])
    n_rows = inferred.shape[0]
    if true.shape[0] != n_rows:
        raise ValueError(f"{names[1]} must have the {n_rows} rows of {names[0]}, got {true.shape[0]}")
    if n_rows < _MIN_PROBE_ROWS:
        raise ValueError(f"{names[0]} must have at least {_MIN_PROBE_ROWS} rows, got {n_rows}")
    index = None if groups is None else _group_index(groups, n_rows)
    n_units = n_rows if index is None else int(index.max()) + 1
    if not 2 <= n_splits <= n_units:
        raise ValueError(f"n_splits must be from 2 to the {n_units} rows or groups to split, got {n_splits}")
    rng = check_random_state(random_state)
    kind = KFold if index is None else GroupKFold
    parts = kind(n_splits, shuffle=True, random_state=rng.randint(2**31 - 1))
    probe = _make_probe(n_rows, rng.randint(2**31 - 1))
    # scikit-learn warns if a target with one column is not one-dimensional.
    target = true.ravel() if true.shape[1] == 1 else true
    predicted = cross_val_predict(probe, inferred, target, groups=index, cv=parts)
    return float(np.mean((predicted - target) ** 2))


def _make_probe(n_rows: int, seed: int) -> TransformedTargetRegressor:
    """Regression network on standardized codes and targets, so that one learning rate suits all units."""
    network = MLPRegressor(
        hidden_layer_sizes=(32, 32),
        # At least 20 steps per epoch if there are enough rows: early stopping counts epochs.
        batch_size=int(np.clip(n_rows // 25, 32, 512)),
        learning_rate_init=0.01,
        early_stopping=True,
        max_iter=500,
        random_state=seed,
    )
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())


def _table(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Values as finite floats (n_rows, n_columns); a one-dimensional array is one column."""
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a table of numbers: {error}") from error
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"{name} must have shape (n_rows, n_columns), not empty, got {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite, but has NaN or infinite values")
    return table


def _group_index(groups: ArrayLike, n_rows: int) -> NDArray[np.intp]:
    """Position of each row's label (N,) among the distinct labels."""
    labels = np.asarray(groups)
    if labels.shape != (n_rows,):
        raise ValueError(f"groups must have one label for each of {n_rows} rows, got shape {labels.shape}")
    index, _ = pd.factorize(labels)
    if (index < 0).any():
        raise ValueError("groups must not have missing labels; drop these rows or label them")
    return index
