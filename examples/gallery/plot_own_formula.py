"""
A formula of your own as decoder
================================

Each subject is given several doses of a drug, and each dose is followed by blood samples at six times.
Subjects eliminate the drug at different rates, but each at the same rate after every dose. The amount
absorbed differs from dose to dose. Physiology gives the curve, so its shape need not be learned: what is a
subject's rate?
"""

# %%
# The data
# --------
# Each row is a dose, each column a time, and each group a subject. Groups have 1 to 8 doses.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

from skgroupvae import GroupVAE

rng = np.random.default_rng(0)
hours = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0])
n_subjects, noise = 200, 0.4
doses = rng.integers(1, 9, n_subjects)
subject = np.repeat(np.arange(n_subjects), doses)
log_rate = np.log(0.25) + 0.4 * rng.normal(size=n_subjects)
amount = 5.0 * np.exp(0.5 * rng.normal(size=len(subject)))
clean = amount[:, None] * np.exp(-np.exp(log_rate)[subject, None] * hours)
X = pd.DataFrame(clean + noise * rng.normal(size=clean.shape), columns=[f"{h:g} h" for h in hours])


# %%
# The formula
# -----------
# Codes are standard normal, and the formula gives them their meaning; here the mean and the SD in the
# population are taken as known. ``u`` is the code of the subject, ``v`` that of the dose.
def concentration(u, v):
    """u (n, 1), v (n, 1) -> (n, 6), in units of X."""
    rate = 0.25 * (0.4 * u).exp()
    return 5.0 * (0.5 * v).exp() * (-rate * u.new_tensor(hours)).exp()


model = GroupVAE(1, 1, decoder=concentration, max_epochs=60, random_state=0).fit(X, groups=subject)
print(f"noise: {model.noise_scale_.round(2)}, truth {noise}")

# %%
# Compared with a fit to each subject alone
# -----------------------------------------
# The usual way is least squares for each dose, averaged over the doses of a subject. Many late concentrations
# are lost in the noise, and a subject with one dose has little to average.


def rate_of_dose(row):
    """Log elimination rate of one dose, by least squares."""
    start = (np.log(5.0), np.log(0.25))
    bounds = ([-5.0, -6.0], [5.0, 3.0])
    found, _ = curve_fit(lambda t, a, k: np.exp(a - np.exp(k) * t), hours, row, p0=start, bounds=bounds)
    return found[1]


alone = pd.Series([rate_of_dose(row) for row in X.to_numpy()]).groupby(subject).mean().to_numpy()
mean = np.log(0.25) + 0.4 * model.group_codes_["u0"].to_numpy()
sd = 0.4 * model.group_codes_std_["u0"].to_numpy()
inside = np.abs(mean - log_rate) < 1.645 * sd
table = pd.DataFrame({"doses": doses, "alone": (alone - log_rate) ** 2, "GroupVAE": (mean - log_rate) ** 2})
print("Root mean squared error of the log rate")
print(np.sqrt(table.groupby(pd.cut(doses, [0, 1, 3, 8])).mean()[["alone", "GroupVAE"]]).round(3))
print(f"90 % posterior intervals cover {inside.mean():.2f} of the subjects")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
panels[0].plot(log_rate, alone, ".", color="#E69F00", label="least squares for each dose")
panels[0].errorbar(
    log_rate, mean, 1.645 * sd, fmt=".", color="#0072B2", elinewidth=0.6, label="GroupVAE, 90 %"
)
panels[0].axline((-1.4, -1.4), slope=1, color="black", linewidth=0.8)
panels[0].set(xlabel="true log rate", ylabel="estimate", ylim=(-3.4, 0.6))
panels[0].legend(frameon=False, loc="upper left")

shown = np.flatnonzero(subject == np.flatnonzero(doses == 4)[0])
fitted = model.reconstruct(X.iloc[shown], groups=subject[shown]).to_numpy()
for k, row in enumerate(shown):
    color = plt.colormaps["viridis"](k / 4)
    panels[1].plot(hours, X.iloc[row], "o", color=color, markersize=4)
    panels[1].plot(hours, fitted[k], color=color)
panels[1].set(
    xlabel="hours after the dose",
    ylabel="concentration",
    title="four doses of one subject (one color per dose)",
)
for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)
