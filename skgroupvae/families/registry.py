"""Names of the families; a new family is one subclass and one line here."""

from __future__ import annotations

from skgroupvae.families.base import Family
from skgroupvae.families.categories import BernoulliFamily, OrdinalFamily
from skgroupvae.families.continuous import GaussianFamily, StudentTFamily
from skgroupvae.families.counts import NegativeBinomialFamily, PoissonFamily
from skgroupvae.families.proportions import BinomialFamily

__all__ = ["FAMILIES"]

FAMILIES: dict[str, type[Family]] = {
    "gaussian": GaussianFamily,
    "student_t": StudentTFamily,
    "bernoulli": BernoulliFamily,
    "binomial": BinomialFamily,
    "poisson": PoissonFamily,
    "negative_binomial": NegativeBinomialFamily,
    "ordinal": OrdinalFamily,
}
