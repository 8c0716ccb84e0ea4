"""Outcome families p(y given x, u) of a regression: one small class each."""

from skgroupvae.families.base import Family, bisect
from skgroupvae.families.categories import BernoulliFamily, OrdinalFamily
from skgroupvae.families.continuous import GaussianFamily, StudentTFamily
from skgroupvae.families.counts import NegativeBinomialFamily, PoissonFamily
from skgroupvae.families.proportions import BinomialFamily, SuccessesFamily
from skgroupvae.families.registry import FAMILIES

__all__ = [
    "FAMILIES",
    "BernoulliFamily",
    "BinomialFamily",
    "Family",
    "GaussianFamily",
    "NegativeBinomialFamily",
    "OrdinalFamily",
    "PoissonFamily",
    "StudentTFamily",
    "SuccessesFamily",
    "bisect",
]
