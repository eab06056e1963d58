"""Poisson's equation as in DeepXDE's example on an L-shaped domain, on a square."""

from __future__ import annotations

import deepxde as dde
import numpy as np
import torch

from recipes.deepxde_training import begin, train
from recipes.given import Given
from recipes.stopwatch import Report

ADAM = 1500


def equation(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    u_xx = dde.grad.hessian(u, x, i=0, j=0)
    u_yy = dde.grad.hessian(u, x, i=1, j=1)
    return u_xx + u_yy + 2 * np.pi**2 * torch.sin(np.pi * x[:, :1]) * torch.sin(np.pi * x[:, 1:])


def run(seconds: float, report: Report, given: Given) -> int:
    begin(given, "float64")
    square = dde.geometry.Rectangle([-1, -1], [1, 1])
    boundary = dde.icbc.DirichletBC(square, lambda x: 0, lambda _, on_boundary: on_boundary)
    data = dde.data.PDE(square, equation, boundary, num_domain=1200, num_boundary=120)
    net = dde.nn.FNN([2] + [50] * 4 + [1], "tanh", "Glorot uniform")
    return train(data, net, ADAM, seconds, report, given)
