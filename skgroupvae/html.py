"""What a notebook shows of a fitted estimator: scikit-learn's diagram, and below it what the fit found."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from sklearn.utils import estimator_html_repr

__all__ = ["FitHTMLMixin", "fit_facts"]

_CELL = '<tr><td style="text-align: left"><b>{}</b></td><td style="text-align: left">{}</td></tr>'


class FitHTMLMixin:
    """Adds the table of `fit_facts` to scikit-learn's HTML of a fitted estimator."""

    def _html_repr(self) -> str:
        facts = fit_facts(self) if hasattr(self, "network_") else {}
        rows = "".join(_CELL.format(escape(name), escape(value)) for name, value in facts.items())
        return estimator_html_repr(self) + (f"<table>{rows}</table>" if rows else "")


def fit_facts(estimator: Any) -> dict[str, str]:
    """Groups, codes and log-likelihood of a fitted estimator, in words.

    Parameters
    ----------
    estimator : GroupVAE or CxVAERegressor
        Fitted.

    Returns
    -------
    facts : dict of str
        The log-likelihood is in the units of the table: that of the linear mixed model where the fit is one,
        else the ELBO, a lower bound, averaged over the last epoch.
    """
    if hasattr(estimator, "outcomes_"):
        by_outcome = {name: fit_facts(model) for name, model in estimator.outcomes_.items()}
        return {
            f"{name}: {fact}": value for name, facts in by_outcome.items() for fact, value in facts.items()
        }
    sizes = estimator._evidence.sizes
    return {
        "Groups": f"{len(sizes):,} of {sizes.min():,} to {sizes.max():,} rows",
        "Group codes": str(estimator.group_codes_.shape[1]),
        "Instance codes": str(estimator._n_instance_codes),
        "Log-likelihood": _log_likelihood(estimator),
    }


def _log_likelihood(estimator: Any) -> str:
    if estimator.history_.empty:
        return f"{estimator.mixed_model_log_likelihood_:,.1f} nats (linear mixed model)"
    last = estimator.history_.iloc[-1]
    elbo = last["reconstruction"] - last["kl_u"] - last["kl_v"] - np.log(estimator._scale).sum()
    return f"at least {elbo:.3f} nats per row (ELBO of the last epoch)"
