"""Writes pipe_flow.csv: simulated measurements of the pressure drop of water in steel pipes.

    python configs/data/make_pipe_flow.py

Darcy and Weisbach: ``drop = f rho v^2 / (2 D)`` per metre of pipe, with the friction factor of
Swamee and Jain (doi:10.1061/JYCEAJ.0004542), ``f = 0.25 / log10(k / (3.7 D) + 5.74 / Re^0.9)^2``,
roughness k = 0.045 mm, and water's density rho and viscosity mu at its temperature. The readings
of the drop carry Gaussian noise of 1%, so no fit has a smaller relative error than that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS, SEED, NOISE = 500, 2026, 0.01
ROUGHNESS = 0.045e-3  # m
HEADER = "velocity [m/s],diameter [mm],temperature [degC],pressure drop [Pa/m]"
RANGES = ((0.5, 3.0), (25.0, 100.0), (10.0, 60.0))


def pressure_drop(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pressure drop in Pa/m ``(n,)`` for velocity in m/s, diameter in mm and degrees Celsius."""
    velocity, diameter, temperature = inputs[:, 0], inputs[:, 1] * 1e-3, inputs[:, 2]
    density = 1000 * (
        1
        - (temperature + 288.9414)
        * (temperature - 3.9863) ** 2
        / (508929.2 * (temperature + 68.12963))
    )
    viscosity = 2.414e-5 * 10 ** (247.8 / (temperature + 133.15))
    reynolds = density * velocity * diameter / viscosity
    friction = 0.25 / np.log10(ROUGHNESS / (3.7 * diameter) + 5.74 / reynolds**0.9) ** 2
    return np.asarray(friction * density * velocity**2 / (2 * diameter))


def make_table() -> NDArray[np.float64]:
    """Inputs and noisy outputs ``(ROWS, 4)``, rounded as an instrument would show them."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    lower, upper = np.array(RANGES).T
    inputs = np.round(lower + (upper - lower) * generator.random((ROWS, 3)), 3)
    noise = 1 + NOISE * generator.standard_normal(ROWS)
    drop = np.round(pressure_drop(inputs) * noise, 2)
    return np.column_stack([inputs, drop])


if __name__ == "__main__":
    target = Path(__file__).with_name("pipe_flow.csv")
    rows = [",".join(f"{value:.10g}" for value in row) for row in make_table()]
    target.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
