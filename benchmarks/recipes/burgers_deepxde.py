"""Burgers' equation as in DeepXDE's example, up to t = 1."""

from __future__ import annotations

import deepxde as dde
import numpy as np
import torch

from recipes.deepxde_training import begin, train
from recipes.given import Given
from recipes.stopwatch import Report

ADAM = 4000  # the example has 15,000


def equation(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    u_x = dde.grad.jacobian(u, x, i=0, j=0)
    u_t = dde.grad.jacobian(u, x, i=0, j=1)
    u_xx = dde.grad.hessian(u, x, i=0, j=0)
    return u_t + u * u_x - 0.01 / np.pi * u_xx


def run(seconds: float, report: Report, given: Given) -> int:
    begin(given, "float64")
    line, time = dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1)
    domain = dde.geometry.GeometryXTime(line, time)
    ends = dde.icbc.DirichletBC(domain, lambda x: 0, lambda _, on_boundary: on_boundary)
    start = dde.icbc.IC(
        domain, lambda x: -np.sin(np.pi * x[:, :1]), lambda _, on_initial: on_initial
    )
    data = dde.data.TimePDE(
        domain, equation, [ends, start], num_domain=2540, num_boundary=80, num_initial=160
    )
    net = dde.nn.FNN([2] + [20] * 3 + [1], "tanh", "Glorot normal")
    return train(data, net, ADAM, seconds, report, given)
