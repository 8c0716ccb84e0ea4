"""Names of the families. A class without a name works as well: it is passed as the class."""

from __future__ import annotations

from skgroupvae.model.families.base import Family
from skgroupvae.model.families.categories import BernoulliFamily, OrdinalFamily
from skgroupvae.model.families.continuous import GaussianFamily, NormalFamily, StudentTFamily
from skgroupvae.model.families.counts import NegativeBinomialFamily, PoissonFamily
from skgroupvae.model.families.proportions import BinomialFamily

__all__ = ["FAMILIES", "OUTCOME_FAMILIES"]

FAMILIES: dict[str, type[Family]] = {
    "normal": NormalFamily,
    "gaussian": GaussianFamily,
    "student_t": StudentTFamily,
    "bernoulli": BernoulliFamily,
    "binomial": BinomialFamily,
    "poisson": PoissonFamily,
    "negative_binomial": NegativeBinomialFamily,
    "ordinal": OrdinalFamily,
}

# What a regressor offers: its "gaussian" is the normal at the start and may learn another shape.
OUTCOME_FAMILIES = tuple(name for name in FAMILIES if name != "normal")
