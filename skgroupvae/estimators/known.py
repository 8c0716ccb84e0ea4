"""What is known of groups, from the fit and from the rows at hand: what both estimators ask."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgroupvae.batch import Batch
from skgroupvae.data.labels import warn_of_unlike_labels
from skgroupvae.data.reader import Table
from skgroupvae.data.tables import some
from skgroupvae.model.model import Model
from skgroupvae.model.posteriors import DiagonalNormal, FullNormal
from skgroupvae.model.summaries import Summaries
from skgroupvae.state import KnownGroups

__all__ = [
    "known_from",
    "positions_of_targets",
    "warn_of_unlike_groups",
    "with_average",
    "with_own",
    "with_table",
]


def known_from(model: Model, table: Table) -> KnownGroups:
    """What a table tells of its groups, in order of first appearance."""
    known = KnownGroups(table.labels, Summaries.of_rows(model, table.batch.to(device=model.device)))
    return known.take(table.first_seen)


def with_table(known: KnownGroups, added: KnownGroups, table: Table) -> KnownGroups:
    """What is known once a table's groups are added; without labels all of them are new."""
    return known.plus(added) if table.has_labels else known.plus_new(added)


def positions_of_targets(known: KnownGroups, target: pd.Index, remedy: str) -> NDArray[np.intp]:
    """Position of each target group among the known ones, -1 for the average group."""
    positions, is_average = known.positions(target), _is_average(target)
    is_unknown = (positions < 0) & ~is_average
    if is_unknown.any():
        unknown = some(list(dict.fromkeys(target[is_unknown])))
        raise ValueError(f"target_group {unknown} does not occur in the fit; pass rows of it as {remedy}")
    return positions


def warn_of_unlike_groups(known: KnownGroups, source: pd.Index, target: pd.Index) -> None:
    """Warn of labels of `translate` that the fit would know if they were of another type."""
    warn_of_unlike_labels(known.labels, source, "source_group")
    warn_of_unlike_labels(known.labels, target[~_is_average(target)], "target_group")


def _is_average(labels: pd.Index) -> NDArray[np.bool_]:
    return np.asarray(labels == "average", dtype=bool)


@torch.no_grad()
def with_own(
    model: Model, batch: Batch, known: KnownGroups | None, labels: pd.Index
) -> tuple[DiagonalNormal | FullNormal | None, DiagonalNormal | FullNormal]:
    """What is known of groups without a batch's rows (None is the prior), and with them."""
    own = batch.groups.sum(model.statistics(batch).double())
    if known is None:
        return None, model.posterior(own)
    positions = torch.from_numpy(known.positions(labels))
    is_known = (positions >= 0).to(own.device)
    if not is_known.any():
        return None, model.posterior(own)
    totals = torch.zeros_like(own)
    totals[is_known] = known.summaries.totals[positions[positions >= 0]].to(own.device)
    return _where_known(model.posterior(totals + (~is_known)[:, None] * own), is_known), model.posterior(
        totals + own
    )


def _where_known(q_u: DiagonalNormal | FullNormal, is_known: Tensor) -> DiagonalNormal | FullNormal:
    """q(u) of the groups that are known, and the prior for the others."""
    loc = torch.where(is_known[:, None], q_u.loc, torch.zeros_like(q_u.loc))
    if isinstance(q_u, DiagonalNormal):
        return DiagonalNormal(loc, torch.where(is_known[:, None], q_u.scale, torch.ones_like(q_u.scale)))
    identity = torch.eye(loc.shape[1], dtype=loc.dtype, device=loc.device)
    root = torch.where(is_known[:, None, None], q_u.root, identity)
    return FullNormal(loc, root, torch.where(is_known, q_u.log_det, torch.zeros_like(q_u.log_det)))


def with_average(q_u: DiagonalNormal | FullNormal) -> DiagonalNormal | FullNormal:
    """The groups and, last, the average group, whose u is known to be 0."""
    loc = torch.cat([q_u.loc, torch.zeros_like(q_u.loc[:1])])
    if isinstance(q_u, DiagonalNormal):
        return DiagonalNormal(loc, torch.cat([q_u.scale, torch.zeros_like(q_u.scale[:1])]))
    root = torch.cat([q_u.root, torch.zeros_like(q_u.root[:1])])
    return FullNormal(loc, root, torch.cat([q_u.log_det, torch.zeros_like(q_u.log_det[:1])]))
