"""Families p(y given x, u) of an observed column: one small class each."""

from skgroupvae.model.families.base import Family, bisect
from skgroupvae.model.families.categories import BernoulliFamily, OrdinalFamily
from skgroupvae.model.families.continuous import GaussianFamily, NormalFamily, StudentTFamily
from skgroupvae.model.families.counts import NegativeBinomialFamily, PoissonFamily
from skgroupvae.model.families.proportions import BinomialFamily, SuccessesFamily
from skgroupvae.model.families.registry import FAMILIES, OUTCOME_FAMILIES

__all__ = [
    "FAMILIES",
    "OUTCOME_FAMILIES",
    "BernoulliFamily",
    "BinomialFamily",
    "Family",
    "GaussianFamily",
    "NegativeBinomialFamily",
    "NormalFamily",
    "OrdinalFamily",
    "PoissonFamily",
    "StudentTFamily",
    "SuccessesFamily",
    "bisect",
]
