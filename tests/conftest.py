"""What every test shares: a guard against hidden global state, and small tables with fitted models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, settings

from skgroupvae import GroupVAE
from skgroupvae.datasets import make_exam_scores

# The same examples at every run, and no time limit, as cores are often shared. No shrinking: it would fit a
# thousand models to make a failing table smaller, and the tables are small.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("suite")


def pytest_configure() -> None:
    # The tensors here are tiny: a second OpenMP thread gains nothing on an idle machine, and where other
    # processes want the cores the threads wait for each other and a fit takes fifty times as long.
    torch.set_num_threads(1)


def _global_state() -> dict[str, object]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": (name, keys.tobytes(), position, has_gauss, cached),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's thread count": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def global_state_guard():
    """Fail a test that leaves a process-wide setting other than it was."""
    before = _global_state()
    yield
    after = _global_state()
    changed = [what for what in before if before[what] != after[what]]
    assert not changed, f"the test changed {changed}; pass a local generator instead"


@pytest.fixture(scope="session")
def exam():
    """Exam scores of 24 schools (one column), with their ground truth."""
    return make_exam_scores(24, random_state=0)


@pytest.fixture(scope="session")
def exam_model(exam):
    """CxVAE fitted on `exam`; tests must not change it."""
    return quick(2, 1).fit(exam.X, groups=exam.groups)


@pytest.fixture(scope="session")
def pupils() -> pd.DataFrame:
    """Two columns in different units and a school label, ragged groups of 1 to 12 rows, shuffled."""
    rng = np.random.RandomState(1)
    sizes = np.array([1, 2, 3, 5, 7, 12, 4, 6, 1, 9, 8, 3])
    school = np.repeat([f"school {i}" for i in range(len(sizes))], sizes)
    level, spread = rng.normal(size=len(sizes)), rng.uniform(0.5, 2.0, len(sizes))
    own = rng.normal(size=len(school))
    score = 50.0 + 10.0 * np.repeat(level, sizes) + 8.0 * np.repeat(spread, sizes) * own
    effort = 0.01 * (own + rng.normal(size=len(school)))
    table = pd.DataFrame({"score": score, "effort": effort, "school": school})
    return table.sample(frac=1.0, random_state=2).set_index(np.arange(100, 100 + len(table)))


@pytest.fixture(scope="session")
def X(pupils):
    """The two columns of `pupils`."""
    return pupils[["score", "effort"]]


@pytest.fixture(scope="session")
def school(pupils):
    """The labels of `pupils`."""
    return pupils["school"]


@pytest.fixture(scope="session")
def pupils_model(pupils):
    """CxVAE fitted on the two columns of `pupils`; tests must not change it."""
    return quick().fit(pupils[["score", "effort"]], groups=pupils["school"])


def quick(*args, **kwargs) -> GroupVAE:
    """Unfitted estimator whose fit and score take a fraction of a second."""
    defaults = {"decoder": "mlp", "max_epochs": 2, "batch_size": 6, "n_importance_samples": 10}
    return GroupVAE(*args, **defaults | {"random_state": 0, "verbose": False} | kwargs)


@pytest.fixture(name="quick", scope="session")
def quick_fixture():
    """Factory of unfitted estimators whose fit takes a fraction of a second."""
    return quick
