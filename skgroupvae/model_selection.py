"""Cross-validation on groups of which some rows are known; needs only scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.model_selection import BaseCrossValidator
from sklearn.model_selection._split import GroupsConsumerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import MetadataRequest

__all__ = ["ContextGroupKFold", "ContextLogLikelihood"]


class ContextGroupKFold(GroupsConsumerMixin, BaseCrossValidator):
    """K-fold over groups that keeps some rows of each held-out group, its context, in the training set.

    The test rows are the other rows of these groups. A score therefore measures how well the rows of a group
    are predicted once some of its rows are known. With ``KFold`` this is so only by chance, and with
    ``GroupKFold`` never.

    Groups are assigned to folds as in ``GroupKFold``: the largest first, each to the fold with the fewest
    rows so far. Each group is held out in one fold, so that a row is scored at most once and a
    context row never.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2 and at most the number of groups.
    n_context : float or int, default=0.5
        Context rows of each held-out group: a fraction of its rows between 0 and 1 (rounded down, but at
        least one row), or a number of rows. At least one row remains to be scored, so that a group with a
        single row is scored without context.
    shuffle : bool, default=True
        Draw the context rows at random and assign groups of equal size in random order. False takes the first
        rows of each group in the order of the table, so that later rows are predicted from earlier ones.
    random_state : int, RandomState instance or None, default=None
        Seed of these draws; used only with `shuffle`. An int gives the same folds at every call, independent
        of the order of the groups in the table.

    See Also
    --------
    sklearn.model_selection.GroupKFold : Holds out whole groups.
    ContextLogLikelihood : The score of test rows given the training rows of their groups.

    Examples
    --------
    >>> import numpy as np
    >>> from skgroupvae.model_selection import ContextGroupKFold
    >>> groups = np.array(["a", "a", "a", "a", "b", "b", "b", "c"])
    >>> cv = ContextGroupKFold(n_splits=2, n_context=2, random_state=0)
    >>> for train, test in cv.split(np.zeros((8, 1)), groups=groups):
    ...     print(groups[train], groups[test])
    ['a' 'a' 'b' 'b' 'b' 'c'] ['a' 'a']
    ['a' 'a' 'a' 'a' 'b' 'b'] ['b' 'c']
    >>> cv
    ContextGroupKFold(n_context=2, n_splits=2, random_state=0, shuffle=True)
    """

    def __init__(
        self,
        n_splits: int = 5,
        *,
        n_context: float = 0.5,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        _check_parameters(n_splits, n_context, shuffle, random_state)
        self.n_splits = n_splits
        self.n_context = n_context
        self.shuffle = shuffle
        self.random_state = random_state

    def split(
        self, X: Any, y: Any = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Training and test rows of each fold.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            The table; only its length is used.
        y : array-like of shape (n_rows,), optional
            Ignored.
        groups : array-like of shape (n_rows,)
            Group label of each row, of any hashable type.

        Yields
        ------
        train : ndarray
            Positions of the rows of the other groups and of the context rows of the held-out groups.
        test : ndarray
            Positions of the other rows of the held-out groups.

        Raises
        ------
        ValueError
            If `groups` is None, has missing labels, or has fewer distinct ones than `n_splits`.
        """
        yield from super().split(X, y, groups)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Number of folds (`n_splits`); the arguments are ignored."""
        return int(self.n_splits)

    def _iter_test_masks(
        self, X: Any = None, y: Any = None, groups: Any = None
    ) -> Iterator[NDArray[np.bool_]]:
        index, sizes = _sorted_groups(groups)
        if len(sizes) < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} is more than the {len(sizes)} distinct labels of groups; "
                "lower n_splits"
            )
        rng = check_random_state(self.random_state) if self.shuffle else None
        folds = _assign_folds(sizes, self.n_splits, rng)[index]
        scored = _ranks(index, sizes, rng) >= self._n_context_rows(sizes)[index]
        for fold in range(self.n_splits):
            yield scored & (folds == fold)

    def _n_context_rows(self, sizes: NDArray[np.intp]) -> NDArray[np.intp]:
        """Number of context rows of each group (G,) when it is held out."""
        if isinstance(self.n_context, (int, np.integer)):
            wanted = np.full(len(sizes), self.n_context)
        else:
            # 0.29 * 100 is slightly below 29.
            wanted = np.maximum(np.floor(self.n_context * sizes + 1e-9), 1).astype(np.intp)
        return np.minimum(wanted, sizes - 1)


class ContextLogLikelihood:
    """Scorer: mean log-likelihood of test rows given what the fit knows about their groups.

    Calls ``estimator.score(X, groups=groups, context=None)``. Meant for :class:`ContextGroupKFold`, which
    leaves rows of every test group in the training set. With metadata routing, `groups` is requested
    automatically; without it, set `group_column` on the estimator.

    Examples
    --------
    >>> from skgroupvae.model_selection import ContextLogLikelihood
    >>> ContextLogLikelihood()
    ContextLogLikelihood()
    """

    def __call__(self, estimator: Any, X: Any, y: Any = None, groups: ArrayLike | None = None) -> float:
        """Score a fitted estimator, Pipeline or search.

        Parameters
        ----------
        estimator : GroupVAE, a Pipeline that ends in one, or a fitted search over either
            The fitted model.
        X : array-like or DataFrame of shape (n_rows, n_features)
            Test rows.
        y : None
            Ignored.
        groups : array-like of shape (n_rows,), optional
            Group label of each row; None with a `group_column`.

        Returns
        -------
        score : float
            In nats per row, larger is better.
        """
        # The score method of a search uses the scorer of the search and takes no context.
        estimator = getattr(estimator, "best_estimator_", estimator)
        if isinstance(estimator, Pipeline) and not get_config()["enable_metadata_routing"]:
            # Without routing, the score method of a Pipeline cannot pass arguments to its last step.
            X, estimator = estimator[:-1].transform(X), estimator[-1]
        return estimator.score(X, groups=groups, context=None)

    def get_metadata_routing(self) -> MetadataRequest:
        """Metadata that scikit-learn passes when metadata routing is enabled: `groups`."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="groups", alias=True)
        return request

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _check_parameters(n_splits: Any, n_context: Any, shuffle: Any, random_state: Any) -> None:
    if isinstance(n_splits, bool) or not isinstance(n_splits, (int, np.integer)) or n_splits < 2:
        raise ValueError(f"n_splits must be an integer of at least 2, got {n_splits!r}")
    is_count = isinstance(n_context, (int, np.integer)) and not isinstance(n_context, bool) and n_context > 0
    is_fraction = isinstance(n_context, (float, np.floating)) and 0 < n_context < 1
    if not (is_count or is_fraction):
        raise ValueError(
            "n_context must be a fraction of a group's rows strictly between 0.0 and 1.0 or a number of rows "
            f"of at least 1, got {n_context!r}; for held-out groups without context use GroupKFold"
        )
    if not isinstance(shuffle, (bool, np.bool_)):
        raise ValueError(f"shuffle must be True or False, got {shuffle!r}")
    if not shuffle and random_state is not None:
        raise ValueError(
            "random_state has no effect with shuffle=False; leave it at None or use shuffle=True"
        )


def _sorted_groups(groups: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Position of each row's label among the sorted labels (N,), and rows of each group (G,)."""
    if groups is None:
        raise ValueError("groups must not be None; pass one label per row to split (or to the search)")
    shape = getattr(groups, "shape", (len(groups),))
    if len(shape) != 1:
        raise ValueError(
            f"groups must be one-dimensional with one label per row, got shape {tuple(shape)}; "
            "for labels made of several columns pass a list of tuples"
        )
    try:
        # A Series keeps each tuple as one label, where an array would turn tuples into columns.
        index, labels = pd.factorize(pd.Series(groups))
    except TypeError as error:
        raise TypeError(f"groups must hold hashable labels ({error}); convert them to tuples") from error
    if (index < 0).any():
        rows = np.flatnonzero(index < 0)
        raise ValueError(
            f"groups has {len(rows)} missing labels (first at row {rows[0]}); drop those rows or label them"
        )
    order = _sorting(list(labels))
    position = np.empty(len(order), dtype=np.intp)
    position[order] = np.arange(len(order))
    index = position[index]
    return index, np.bincount(index, minlength=len(order))


def _sorting(labels: list[Any]) -> list[int]:
    """Positions that sort the labels, so that the folds do not depend on the order of the rows."""
    try:
        return sorted(range(len(labels)), key=labels.__getitem__)
    except TypeError:  # labels of mixed types, such as numbers and strings
        return sorted(range(len(labels)), key=lambda i: (type(labels[i]).__name__, repr(labels[i])))


def _assign_folds(
    sizes: NDArray[np.intp], n_splits: int, rng: np.random.RandomState | None
) -> NDArray[np.intp]:
    """Fold of each group (G,): the largest group first, each to the fold with the fewest rows so far."""
    order = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
    # In reverse, as in GroupKFold: without shuffling the folds are the same.
    order = order[np.argsort(sizes[order], kind="stable")[::-1]]
    rows, folds = np.zeros(n_splits, dtype=np.intp), np.empty(len(sizes), dtype=np.intp)
    for group in order:
        folds[group] = rows.argmin()
        rows[folds[group]] += sizes[group]
    return folds


def _ranks(
    index: NDArray[np.intp], sizes: NDArray[np.intp], rng: np.random.RandomState | None
) -> NDArray[np.intp]:
    """Rank of each row (N,) among the rows of its group: 0, 1, ... in the order of the table or at random."""
    order = np.argsort(index, kind="stable")
    if rng is not None:
        # Drawn group by group, so that the order of the groups in the table does not matter.
        order = order[np.lexsort((rng.random_sample(len(index)), index[order]))]
    ranks = np.empty(len(index), dtype=np.intp)
    ranks[order] = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
