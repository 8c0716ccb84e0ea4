"""
Choosing codes and decoder by cross-validation
==============================================

How many group codes do the data need, and do they need the network? The held-out log-likelihood answers, but
of what: of a new group, or of more rows of a known group? Each question has its own splitter, and the answers
need not be the same.
"""

# %%
# Exam scores of 160 simulated schools
# ------------------------------------
# Schools differ in their mean *and* in their spread, so the truth has two codes, and no linear decoder can
# express the second.
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.model_selection import GridSearchCV, GroupKFold

from skgroupvae import GroupVAE
from skgroupvae.datasets import exam_scores_posterior, make_exam_scores
from skgroupvae.model_selection import ContextGroupKFold, ContextLogLikelihood

data = make_exam_scores(160, random_state=0)
table = pd.DataFrame({"score": data.X[:, 0], "school": data.groups})
model = GroupVAE(
    group_column="school",
    regularizer=None,
    max_epochs=25,
    batch_size=32,
    n_decoder_samples=8,
    n_importance_samples=50,
    random_state=0,
)
grid = [{"decoder": ["linear"], "n_group_codes": [1]}, {"decoder": ["mlp"], "n_group_codes": [1, 2, 3]}]

# %%
# Two searches
# ------------
# ``GroupKFold`` keeps each school in one fold: the score is that of new schools. ``ContextGroupKFold`` leaves
# half of the students of each held-out school in the training set, and ``ContextLogLikelihood`` scores the
# others given them. The splitter gets the labels from ``fit``; the model takes them from the column.
searches = {
    "new school": GridSearchCV(model, grid, cv=GroupKFold(2), refit=False),
    "known school": GridSearchCV(
        model, grid, cv=ContextGroupKFold(2, random_state=0), scoring=ContextLogLikelihood(), refit=False
    ),
}
results = {}
for name, search in searches.items():
    search.fit(table, groups=table["school"])
    found = pd.DataFrame(search.cv_results_)
    found.index = [f"{p['decoder']}, {p['n_group_codes']}" for p in found["params"]]
    results[name] = found.filter(regex=r"split\d_test_score")
summary = pd.concat({name: folds.mean(axis=1) for name, folds in results.items()}, axis=1)
print("Held-out log-likelihood, nats per student")
print(summary.round(3).to_string())
exact = exam_scores_posterior(data.X, data.groups).log_likelihood_per_row
print(f"exact, with all of these schools as new schools: {exact:.3f}")

# %%
# Compare within folds
# --------------------
# Folds differ more than models do, so take differences from one model within each fold: here from the model
# with the best mean.
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
for panel, (name, folds) in zip(panels, results.items(), strict=True):
    best = folds.mean(axis=1).idxmax()
    difference = folds - folds.loc[best]
    for _, fold in difference.items():
        panel.plot(fold, range(len(fold)), "o", color="0.6", markersize=4)
    panel.plot(difference.mean(axis=1), range(len(difference)), "D", color="#0072B2", label="mean of folds")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.locator_params(axis="x", nbins=5)
    panel.set(title=f"{name} (best: {best})", xlabel="nats per student, minus the best (gray: one fold)")
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_yticks(range(len(summary)), summary.index)
panels[0].set_ylabel("decoder, group codes")
panels[0].legend(frameon=False, loc="upper left")

# %%
# Both questions have the same answer here: the network, and two codes. The second code is worth more for a
# known school, whose students tell its spread; the third gains nothing in either case.
