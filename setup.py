"""The list of packages; everything else is in pyproject.toml.

The folder ``problems`` is installed as ``kanpinn_problems``, since ``problems`` is too common a
name for a top-level package. Finding packages and renaming one cannot be said together in
pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kanpinn", "kanpinn.*"]), "kanpinn_problems"],
    package_dir={"kanpinn_problems": "problems"},
)
