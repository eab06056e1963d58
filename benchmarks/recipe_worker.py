"""A recipe of a peer in a process of its own.

Usage: python benchmarks/recipe_worker.py RECIPE SECONDS SEED DATA.npz
Prints a line of JSON for every report, and one with the number of parameters.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from recipes.given import Given

# Packages read these when they are first imported, wherever that is.
os.environ.update(DDE_BACKEND="pytorch", JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")


def report(seconds: float, error: float) -> None:
    """Print where the training is."""
    print("\n" + json.dumps({"seconds": seconds, "error": error}), flush=True)


def main() -> None:
    name, seconds, seed, data = sys.argv[1:]
    recipe = importlib.import_module(f"recipes.{name}")
    count = recipe.run(float(seconds), report, Given.load(Path(data), int(seed)))
    print("\n" + json.dumps({"parameters": int(count)}), flush=True)


if __name__ == "__main__":
    main()
