"""
The paper's comparison on a small scale
=======================================

The CxVAE paper compares models of the family on simulated exam scores (section 3.1): which of them can tell
what a student would have scored in another school? Here they are fitted to 1,000 schools, and each number is
compared with the best that any method could do. ``examples/paper_tables.py`` has the full tables at full
size.
"""

# %%
# Data and lower limit
# --------------------
# No method has a smaller expected error than the exact posterior mean, which is computed by quadrature. All
# models have the true formula as decoder, as in the paper: the comparison is of how well they *infer* the
# codes.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from skgroupvae import PUBLISHED_MODELS, GroupVAE
from skgroupvae.datasets import exam_scores_posterior, make_exam_scores

train = make_exam_scores(1000, random_state=0)
test = make_exam_scores(500, random_state=1)


def formula(u, v):
    """The true mean of a score."""
    return 2 * u[:, :1] + (u[:, 1:] ** 2 + 1) * v


exact = exam_scores_posterior(test.X, test.groups)
limit = np.mean((exact.v - test.v) ** 2)

# %%
# Four published models
# ---------------------
# ``v`` is a student's standing within the school. Errors are mean squared differences from the truth over
# students, with standard errors by school.
errors = {"exact posterior": (exact.v - test.v) ** 2, "score, standardized": None}
for name, choices in PUBLISHED_MODELS.items():
    model = GroupVAE(decoder=formula, max_epochs=30, random_state=0, **choices)
    model.fit(train.X, groups=train.groups)
    _, v = model.transform(test.X, groups=test.groups)
    errors[name] = (v[:, 0] - test.v) ** 2
by_school = pd.Series(test.X[:, 0]).groupby(test.groups)
z = (test.X[:, 0] - by_school.transform("mean")) / by_school.transform("std")
errors["score, standardized"] = (z.to_numpy() - test.v) ** 2

by_school = {name: pd.Series(e).groupby(test.groups).mean() for name, e in errors.items()}
table = pd.DataFrame(
    {
        "error of v": {name: e.mean() for name, e in errors.items()},
        "standard error": {name: e.sem() for name, e in by_school.items()},
    }
)
table["excess, %"] = 100 * (table["error of v"] / limit - 1)
print(table.round({"error of v": 3, "standard error": 3, "excess, %": 1}).to_string())

# %%
# Only CxVAE infers a student's standing from the score and the school; the others use the score alone. Even
# standardizing within schools, which needs no model, does better than they do on this problem.
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
shown = table.sort_values("error of v", ascending=False)
colors = ["#0072B2" if name == "CxVAE" else "0.65" for name in shown.index]
ax.barh(shown.index, shown["error of v"], xerr=1.96 * shown["standard error"], color=colors, ecolor="0.3")
ax.axvline(limit, color="black", linestyle="--", linewidth=1)
ax.annotate("exact limit", (limit, -0.45), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
ax.set(xlabel="mean squared error of v (prior: 1)")
ax.spines[["top", "right"]].set_visible(False)
