"""The estimators: the only files that know scikit-learn's conventions."""

from skgroupvae.estimators.group_vae import GroupVAE
from skgroupvae.estimators.regressor import CxVAERegressor

__all__ = ["CxVAERegressor", "GroupVAE"]
