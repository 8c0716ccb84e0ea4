"""Names of the families; a new family is one subclass and one line here."""

from __future__ import annotations

from collections.abc import Callable

from skgroupvae.families.base import Family
from skgroupvae.families.categories import BernoulliFamily, OrdinalFamily
from skgroupvae.families.continuous import GaussianFamily, StudentTFamily
from skgroupvae.families.counts import NegativeBinomialFamily, PoissonFamily

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Callable[..., Family]] = {
    "gaussian": GaussianFamily,
    "student_t": StudentTFamily,
    "bernoulli": BernoulliFamily,
    "poisson": PoissonFamily,
    "negative_binomial": NegativeBinomialFamily,
    "ordinal": OrdinalFamily,
}
