"""scikit-learn-compatible estimators for grouped data: group codes, instance codes, translation."""

from skgroupvae.estimators import CxVAERegressor, GroupVAE
from skgroupvae.model.spec import PUBLISHED_MODELS
from skgroupvae.versions import __version__, show_versions

__all__ = ["PUBLISHED_MODELS", "CxVAERegressor", "GroupVAE", "__version__", "show_versions"]
