"""
Harmonising sites without losing what differs between them
==========================================================

Twelve sites measure the same organ, each with a scanner of its own that shifts and stretches the reading.
The sites also see patients of different ages, and the organ shrinks with age. Standardising the readings
within each site takes the scanner out, and the age with it. Can a translation to one site take out the
scanner alone?
"""

# %%
# A simulation in which the truth is known
# ----------------------------------------
# The reading of patient k at site i is ``shift + stretch * (curve(age) + v)``. ``truth`` is what site 0
# would have read.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from skgroupvae import CxVAERegressor

rng = np.random.default_rng(0)
n_sites, n_patients = 12, 150
site = np.repeat(np.arange(n_sites), n_patients)
typical_age = np.append(55.0, rng.uniform(35, 75, n_sites - 1))
spread = np.append(15.0, np.full(n_sites - 1, 8.0))  # the reference site sees all ages
age = np.clip(typical_age[site] + spread[site] * rng.normal(size=len(site)), 20, 90)
shift = np.append(0.0, rng.normal(0, 4, n_sites - 1))
stretch = np.append(1.0, np.exp(rng.normal(0, 0.3, n_sites - 1)))


def curve(years):
    """Volume at an age, in ml: slow shrinking, then faster."""
    return 60 - 0.08 * (years - 20) - 0.004 * (years - 20) ** 2


truth = curve(age) + 3 * rng.normal(size=len(site))
reading = shift[site] + 60 + stretch[site] * (truth - 60)

# %%
# Three ways
# ----------
# 1. leave the readings as they are;
# 2. standardise within each site, and give all the mean and spread of site 0;
# 3. learn the reading from age by site, and translate each patient to site 0: the same age and the same
#    standing among patients of that age and site, but the scanner of site 0.
X = pd.DataFrame({"age": age})
model = CxVAERegressor(random_state=0).fit(X, reading, groups=site)
translated = model.translate(X, reading, source_group=site, target_group=0)

by_site = pd.Series(reading).groupby(site)
z = (reading - by_site.transform("mean")) / by_site.transform("std")
standardized = reading[site == 0].mean() + z.to_numpy() * reading[site == 0].std()

results = {"raw": reading, "standardized": standardized, "translated": translated}
away = site != 0
rows = {}
for name, values in results.items():
    error = values[away] - truth[away]
    slope, slope_truth = (np.polyfit(age[away], v[away], 1)[0] for v in (values, truth))
    rows[name] = {
        "RMSE, ml": np.sqrt(np.mean(error**2)),
        "slope in age, ml a year": slope,
        "true slope": slope_truth,
    }
print(pd.DataFrame(rows).T.round(3))

# %%
# Standardising loses half of the decline with age, as it sets the sites with old patients to the mean of
# the others: its readings are no nearer to the truth than the raw ones. The translation keeps the decline.
figure, panels = plt.subplots(1, 4, figsize=(11, 3.6), sharex=True, sharey=True, layout="constrained")
colors = plt.colormaps["viridis"](np.linspace(0, 0.95, n_sites))
years = np.linspace(25, 88, 100)
for panel, (name, values) in zip(panels, {"truth at site 0": truth, **results}.items(), strict=True):
    panel.scatter(age, values, s=3, c=colors[site], rasterized=True)
    panel.plot(years, curve(years), color="black", linewidth=1.5, label="true curve")
    panel.set(title=name, xlabel="age / years")
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("volume / ml (a colour a site)")
panels[0].legend(frameon=False, loc="lower left")

# %%
# What it rests on
# ----------------
# The target must have seen patients of all ages: elsewhere its readings are extrapolated. Here is the same
# translation to the site with the youngest patients, its error in the units of site 0.
youngest = int(pd.Series(age).groupby(site).mean().idxmin())
there = model.translate(X, reading, source_group=site, target_group=youngest)
in_units = 60 + (there - shift[youngest] - 60) / stretch[youngest]
old = age > age[site == youngest].max()
for name, values, target in (("site 0", translated, 0), (f"site {youngest}", in_units, youngest)):
    error = np.abs(values - truth)[site != target]
    beyond = old[site != target]
    print(
        f"to {name:8s} mean error {error[~beyond].mean():.2f} ml at ages that site {youngest} has seen, "
        f"{error[beyond].mean():.2f} ml beyond"
    )

# %%
# And the patients of a site must be like others of their age: if one site sees the severe cases, the
# translation takes severity for the scanner.
