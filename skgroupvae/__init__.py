"""scikit-learn-compatible estimators for grouped data: group codes, instance codes, translation."""

from skgroupvae.building import PUBLISHED_MODELS
from skgroupvae.estimators import GroupVAE
from skgroupvae.regressors import CxVAERegressor

__all__ = ["PUBLISHED_MODELS", "CxVAERegressor", "GroupVAE", "__version__"]
__version__ = "0.1.0"
