"""The compiled kernels against recorded operations, and what happens where there are none."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from kanpinn.errors import ConfigError
from kanpinn.jets import JetSpec
from kanpinn.kernels import LocalFeatures, kernels, kernels_expected, kernels_unused, library
from kanpinn.kernels.library import cache_folder
from kanpinn.models import KnotLayerSettings
from kanpinn.models.features import DenseFeatures
from kanpinn.models.knot_layer import KnotLayer, recorded_features
from kanpinn.models.knot_layers import PowerReluLayer, SplineLayer
from kanpinn.models.layer import Layer
from kanpinn.splines import Knots

SPECS = {
    "values": JetSpec.value_only(2),
    "laplacian": JetSpec.closure(2, [], laplacian=(0, 1)),
    "second": JetSpec.closure(2, [(2, 0), (1, 1), (0, 2)]),
    "third": JetSpec.closure(2, [(3, 0), (1, 2)]),
    "fourth": JetSpec.closure(2, [(4, 0), (2, 2)]),
}
needs_compiler = pytest.mark.skipif(
    not (library._wanted() and library._compiler()), reason="no C++ compiler, or turned off"
)


def layer(
    order: int,
    kind: str,
    settings: KnotLayerSettings,
    dtype: torch.dtype,
    outputs: int = 5,
    basis: type[SplineLayer | PowerReluLayer] = SplineLayer,
    channels: int = 2,
) -> Any:
    """A layer with random coefficients, whose channels have two sets of knots in turn."""
    points = {
        "uniform": ([-1, -0.6, -0.2, 0.2, 0.6, 1],) * 2,
        "unequal": ([-1, -0.5, 0, 0.5, 1], [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]),
        "arbitrary": ([-1, -0.7, -0.1, 0.3, 0.5, 1], [-1, 0.25, 1]),
    }[kind]
    in_turn = itertools.islice(itertools.cycle(points), channels)
    knots = Knots.from_breakpoints(order, [torch.tensor(t, dtype=torch.float64) for t in in_turn])
    made = basis(knots, outputs, settings)
    generator = torch.Generator().manual_seed(order)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.3)
    return made.to(dtype)


def jets(spec: JetSpec, dtype: torch.dtype, points: int = 37, channels: int = 2) -> torch.Tensor:
    """Random input jets; some values lie outside the knots."""
    generator = torch.Generator().manual_seed(7)
    shape = (spec.n_components, points, channels)
    z = 0.8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return z.to(dtype).requires_grad_()


def differences(
    made: KnotLayer, spec: JetSpec, z: torch.Tensor, by_kernel: bool = True
) -> dict[str, float]:
    """Relative differences between the kernel and recorded operations: outputs and gradients."""
    assert by_kernel != made.needs_features(z)  # or one of them would be compared with itself
    weights = torch.cos(torch.arange(len(z) * z.shape[1] * made.out_width, dtype=z.dtype))
    names = ["z", *(name for name, _ in made.named_parameters())]
    leaves = (z, *made.parameters())
    found = []
    for y in (made.forward(z, spec), Layer.forward(made, z, spec)):
        total = (y * weights.view_as(y)).sum()
        found.append({"y": y, **dict(zip(names, torch.autograd.grad(total, leaves), strict=True))})
    return {
        name: ((a - found[1][name]).abs().max() / found[1][name].abs().max()).item()
        for name, a in found[0].items()
    }


@needs_compiler
def test_the_kernels_compile() -> None:
    """All other tests of them would be of what stands in for them."""
    assert kernels().library is not None, kernels().description


@needs_compiler
@pytest.mark.parametrize("order", range(2, 9))
@pytest.mark.parametrize("name", SPECS)
def test_the_kernel_agrees_with_recorded_operations(order: int, name: str) -> None:
    for kind, free, squash in itertools.product(
        ("uniform", "unequal", "arbitrary"), (False, True), (None, "tanh")
    ):
        made = layer(order, kind, KnotLayerSettings(free=free, squash=squash), torch.float64)
        found = differences(made, SPECS[name], jets(SPECS[name], torch.float64))
        assert max(found.values()) < 1e-12, (kind, free, squash, found)


@needs_compiler
@pytest.mark.parametrize("order", range(2, 9))
@pytest.mark.parametrize("name", ["values", "laplacian", "fourth"])
def test_truncated_powers_by_the_kernel_are_their_sum(order: int, name: str) -> None:
    """On fixed knots the kernel takes them as B-splines, with coefficients ``w A^-1``."""
    for kind, squash in itertools.product(("uniform", "unequal", "arbitrary"), (None, "tanh")):
        settings = KnotLayerSettings(squash=squash, base="silu")
        made = layer(order, kind, settings, torch.float64, basis=PowerReluLayer)
        z = jets(SPECS[name], torch.float64)
        if squash is None:
            z = torch.cat([z[:1].clamp(-1, 1), z[1:]]).detach().requires_grad_()
        found = differences(made, SPECS[name], z)
        assert max(found.values()) < 1e-12, (kind, squash, found)


@needs_compiler
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        (KnotLayerSettings(free=True, squash="tanh"), torch.float64),
        (KnotLayerSettings(squash="tanh"), torch.float32),
        (KnotLayerSettings(), torch.float64),  # some inputs lie outside the knots
    ],
    ids=["free", "float32", "outside"],
)
def test_truncated_powers_that_are_left_to_recorded_operations(
    settings: KnotLayerSettings, dtype: torch.dtype
) -> None:
    made = layer(4, "uniform", settings, dtype, basis=PowerReluLayer)
    z = jets(SPECS["laplacian"], dtype)
    assert max(differences(made, SPECS["laplacian"], z, by_kernel=False).values()) == 0


@needs_compiler
def test_tensors_of_another_type_are_refused() -> None:
    """The kernel would take them for what they are not."""
    made = layer(4, "uniform", KnotLayerSettings(squash="tanh"), torch.float32)
    y, found, _ = made.recorded(jets(SPECS["laplacian"], torch.float32), SPECS["laplacian"])
    columns = torch.arange(made.coefficients.numel())
    rows = torch.zeros(y.shape[1], len(columns), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"takes 'rows' as torch.float32 on the CPU"):
        found["coefficients"].add_outer(torch.ones_like(y), columns, rows)


@needs_compiler
@pytest.mark.parametrize("order", range(2, 9))
@pytest.mark.parametrize("outputs", [1, 5])
def test_a_jacobian_without_features(order: int, outputs: int) -> None:
    """What the kernel makes of them, against features that are there."""
    spec, generator = SPECS["second"], torch.Generator().manual_seed(order)
    for kind, squash in itertools.product(("uniform", "unequal", "arbitrary"), (None, "tanh")):
        settings = KnotLayerSettings(squash=squash, base="silu")
        made = layer(order, kind, settings, torch.float64, outputs)
        z = jets(spec, torch.float64, 50).detach()
        y, found, copies = made.recorded(z, spec)
        expected_y, expected, _ = Layer.recorded(made, z, spec)
        assert isinstance(found["coefficients"], LocalFeatures) and not copies and y.requires_grad
        torch.testing.assert_close(y, expected_y, rtol=1e-11, atol=1e-11)
        adjoint = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        assert list(found) == list(expected)
        for name, local in found.items():
            dense = expected[name]
            wide = (outputs, dense.n_features)
            weights = torch.randn(wide, generator=generator, dtype=y.dtype)
            rows = torch.ones(30, 3, 2 * weights.numel(), dtype=y.dtype)[:, 1]
            columns = torch.randperm(rows.shape[1], generator=generator)[: weights.numel()]
            part = slice(7, 37)
            local.at(part).add_outer(adjoint[:, part], columns, rows)
            pairs = [
                (local.contract(weights), dense.contract(weights)),
                (local.transposed(adjoint), dense.transposed(adjoint)),
                (local.outer(adjoint), dense.outer(adjoint)),
                (rows[:, columns] - 1, dense.outer(adjoint)[part]),
            ]
            if isinstance(local, LocalFeatures) and isinstance(dense, DenseFeatures):
                pairs.append((local.dense(), dense.values))
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * b.abs().max().item())
            for some in (part, slice(3, 4)):
                used = local.at(some).used.tolist()
                assert set(used) >= set(dense.at(some).used.tolist()) and used == sorted(used)
            assert len(used) == (2 * order if name == "coefficients" else 2)  # of one point
            untouched = [c for c in range(rows.shape[1]) if c not in set(columns.tolist())]
            assert bool((rows[:, untouched] == 1).all())


@needs_compiler
@pytest.mark.parametrize("outputs", [1, 3, 8, 17, 56, 64])
@pytest.mark.parametrize("name", ["values", "laplacian", "second", "third"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_number_of_outputs_and_points(outputs: int, name: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    for points in (1, 15, 16, 33):
        settings = KnotLayerSettings(squash="tanh", base="silu")
        made = layer(4, "uniform", settings, dtype, outputs)
        found = differences(made, spec, jets(spec, dtype, points))
        assert max(found.values()) < 4000 * torch.finfo(dtype).eps, (points, found)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_coefficients_beyond_the_first_cache(dtype: torch.dtype) -> None:
    """Those of points to come are fetched ahead."""
    made = SplineLayer(Knots.uniform_grid(4, 200, 2), 64, KnotLayerSettings(squash="tanh"))
    assert made.coefficients[0].numel() / 2 * 64 * 4 > 32768
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(made.coefficients.shape, generator=generator, dtype=torch.float64)
        made.coefficients.add_(noise)
    spec = SPECS["laplacian"]
    found = differences(made.to(dtype), spec, jets(spec, dtype, 70))
    assert max(found.values()) < 1000 * torch.finfo(dtype).eps, found


@needs_compiler
@pytest.mark.parametrize("channels", [1, 7, 8, 19, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    spec = SPECS["laplacian"]
    for squash, outputs, points in (("tanh", 1, 33), ("tanh", 6, 32), (None, 3, 17)):
        made = layer(
            4, "unequal", KnotLayerSettings(squash=squash), dtype, outputs, SplineLayer, channels
        )
        found = differences(made, spec, jets(spec, dtype, points, channels))
        assert max(found.values()) < 4e4 * torch.finfo(dtype).eps, (squash, points, found)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-6, 1e-3, 1.0])
def test_the_squash_is_accurate_everywhere(size: float, dtype: torch.dtype) -> None:
    """Relative to any ``size``: on knots of that width near zero an error of tanh is seen."""
    # Splines whose coefficients are the averages of their knots are the identity, of x / size here.
    ends = torch.tensor([-size, size], dtype=torch.float64)
    made = SplineLayer(Knots.from_breakpoints(4, [ends]), 1, KnotLayerSettings(squash="tanh"))
    with torch.no_grad():
        made.coefficients.copy_(torch.linspace(-3, 3, 4)[None])
    made = made.to(dtype)
    z = size * torch.linspace(-1, 1, 401, dtype=torch.float64)
    if size == 1:
        wide = torch.logspace(0, 2, 200, dtype=torch.float64)
        special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
        z = torch.cat([z, wide, -wide, special])
    z = z.to(dtype)
    y = made.forward(z[None, :, None], SPECS["values"])[0, :, 0].double()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, z.double().tanh() / size, rtol=0, atol=6 * eps, equal_nan=True)


@needs_compiler
def test_single_precision() -> None:
    for kind in ("uniform", "arbitrary"):
        made = layer(4, kind, KnotLayerSettings(squash="tanh"), torch.float32)
        found = differences(made, SPECS["laplacian"], jets(SPECS["laplacian"], torch.float32))
        assert max(found.values()) < 1e-4, (kind, found)


@pytest.mark.parametrize("by_kernel", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", ["values", "laplacian"])
def test_gradients_can_be_differentiated_again(
    name: str, free: bool, outputs: int, by_kernel: bool
) -> None:
    spec = SPECS[name]
    settings = KnotLayerSettings(free=free, squash="tanh")
    made = layer(5, "arbitrary", settings, torch.float64, outputs)
    z = jets(spec, torch.float64, 4)

    def squared_gradient(y: torch.Tensor) -> torch.Tensor:
        leaves = (z, *made.parameters())
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.cat([g.square().sum()[None] for g in first]).sum()

    leaves = (z, *made.parameters())
    plain = made.contract(recorded_features(made._squashed(z, spec), spec, made.basis))
    with nullcontext() if by_kernel else kernels_unused():
        found = torch.autograd.grad(squared_gradient(made.forward(z, spec)), leaves)
    for a, b in zip(found, torch.autograd.grad(squared_gradient(plain), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


@pytest.mark.parametrize("by_kernel", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("kind", ["uniform", "arbitrary"])
def test_training_after_an_evaluation_in_inference_mode(kind: str, by_kernel: bool) -> None:
    """What an evaluation leaves for later ones can be used in any mode."""
    spec = SPECS["laplacian"]
    for dtype in (torch.float64, torch.float32):
        made = layer(4, kind, KnotLayerSettings(squash="tanh"), dtype)
        z = jets(spec, dtype)
        with nullcontext() if by_kernel else kernels_unused():
            with torch.inference_mode():
                before = made.forward(z.detach(), spec)
            y = made.forward(z, spec)
            y.square().sum().backward()
        assert torch.equal(y.detach(), before.clone()) and z.grad is not None


@needs_compiler
def test_no_points() -> None:
    spec = SPECS["laplacian"]
    made = layer(4, "uniform", KnotLayerSettings(squash="tanh"), torch.float64)
    z = jets(spec, torch.float64, 0)
    y = made.forward(z, spec)
    found = torch.autograd.grad(y.sum(), (z, made.coefficients))
    assert y.shape == (4, 0, 5) and found[0].shape == z.shape
    assert torch.equal(found[1], torch.zeros_like(made.coefficients))


@needs_compiler
def test_jets_in_another_order_in_memory() -> None:
    spec = SPECS["laplacian"]
    made = layer(4, "arbitrary", KnotLayerSettings(squash="tanh"), torch.float64)
    plain = jets(spec, torch.float64)
    z = plain.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    for order in (False, True):
        found = [
            torch.autograd.grad(made.forward(x, spec).square().sum(), x, create_graph=order)[0]
            for x in (plain, z)
        ]
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
        if order:
            pairs = zip(found, (plain, z), strict=True)
            found = [torch.autograd.grad(g.square().sum(), x)[0] for g, x in pairs]
            torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@needs_compiler
def test_jets_of_another_kind_are_refused() -> None:
    made = layer(4, "uniform", KnotLayerSettings(), torch.float64)
    with pytest.raises(ValueError, match="jets of 4 components"):
        made.forward(torch.zeros(1, 9, 2, dtype=torch.float64), SPECS["laplacian"])


@pytest.mark.parametrize("name", ["values", "laplacian"])
@pytest.mark.parametrize("free", [False, True])
def test_one_output_without_the_kernels(free: bool, name: str) -> None:
    settings = KnotLayerSettings(squash="tanh", base="silu", free=free)
    made = layer(4, "unequal", settings, torch.float64, outputs=1)
    z = jets(SPECS[name], torch.float64)
    with kernels_unused():
        recorded = made.forward(z, SPECS[name]).grad_fn
        assert "Mm" not in recorded.next_functions[0][0].name()  # no product with all functions
        found = differences(made, SPECS[name], z, by_kernel=False)
    assert set(found) >= {"y", "z", "coefficients", "base_weights"}
    assert max(found.values()) < 1e-12, found


@needs_compiler
def test_going_without_the_kernels_for_a_while() -> None:
    spec = SPECS["values"]
    made = layer(4, "uniform", KnotLayerSettings(), torch.float64)
    z = jets(spec, torch.float64)
    y = made.forward(z, spec)
    with kernels_unused():
        assert kernels().library is None and made.needs_features(z)
        y.sum().backward()  # by what made it
    assert z.grad is not None and kernels().library is not None


@needs_compiler
@pytest.mark.parametrize("kind", ["uniform", "arbitrary"])
def test_far_points_and_points_that_are_no_numbers(kind: str) -> None:
    made = layer(4, kind, KnotLayerSettings(), torch.float64)
    far = torch.tensor([1.0, -1.0, 0.2, 1e9, -1e9, torch.nan, torch.inf, -torch.inf])
    z = far.double()[:, None].expand(-1, 2)[None].contiguous()
    spec = SPECS["values"]
    torch.testing.assert_close(
        made.forward(z, spec), Layer.forward(made, z, spec), rtol=1e-9, atol=0, equal_nan=True
    )


@needs_compiler
def test_only_what_is_asked_for_is_differentiated() -> None:
    spec = SPECS["laplacian"]
    made = layer(4, "uniform", KnotLayerSettings(squash="tanh"), torch.float64)
    z = jets(spec, torch.float64).detach()
    (alone,) = torch.autograd.grad(made.forward(z, spec).square().sum(), made.coefficients)
    z.requires_grad_()
    both = torch.autograd.grad(made.forward(z, spec).square().sum(), (made.coefficients, z))
    torch.testing.assert_close(alone, both[0], rtol=0, atol=0)
    made.coefficients.requires_grad_(False)
    (inner,) = torch.autograd.grad(made.forward(z, spec).square().sum(), z)
    torch.testing.assert_close(inner, both[1], rtol=0, atol=0)


def started(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A new process that looks for the kernels, with a cache of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CXX", "KANPINN_KERNELS")}
    environment = {**clean, "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), **variables}
    command = [sys.executable, "-m", "kanpinn.kernels"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


def test_kernels_can_be_turned_off(tmp_path: Path) -> None:
    found = started(tmp_path, KANPINN_KERNELS="torch")
    assert found.stdout == "PyTorch kernels (KANPINN_KERNELS=torch)\n"


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    found = started(tmp_path, CXX="no-such-compiler")
    assert found.stdout == "PyTorch kernels (no-such-compiler was not found)\n"


def test_only_known_values_turn_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FOUND", [])
    monkeypatch.setenv("KANPINN_KERNELS", "off")
    for ask in (kernels, kernels_expected):
        with pytest.raises(ConfigError, match="KANPINN_KERNELS: found 'off'; allowed: torch"):
            ask()


def test_a_compiler_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -m 'two words'")
    assert library._compiler() == [sys.executable, "-m", "two words"]


def test_a_compiler_that_fails_is_no_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no" >&2; exit 1\n')
    broken.chmod(0o755)
    found = started(tmp_path, CXX=str(broken))
    assert found.stdout.splitlines()[1:] == [
        "no compiled kernels: error: no",
        "PyTorch kernels (broken failed)",
    ]
    assert not list((tmp_path / "kanpinn").glob("*"))


def test_a_cache_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(OSError, match="can be written by others"):
        cache_folder()


def test_a_user_may_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: a number alone, and no home."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", nobody)
    assert cache_folder().parent == tmp_path


@needs_compiler
def test_kernels_in_the_cache(tmp_path: Path) -> None:
    """They are used without a compiler, and from a folder that cannot be written."""
    (compiled,) = library._cached(f"{library._stem()}-*.so")[:1]
    folder = tmp_path / "kanpinn"
    folder.mkdir()
    shutil.copy(compiled, folder)
    folder.chmod(0o500)
    assert started(tmp_path).stdout.startswith("kernels compiled by ")
    assert started(tmp_path, CXX="none").stdout == "kernels compiled before\n"


def test_damaged_kernels_are_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "kanpinn"
    folder.mkdir()
    (folder / f"{library._stem()}-0123.so").write_text("no library")
    found = started(tmp_path, CXX="none").stdout.splitlines()
    assert "cannot be used" in found[0] and found[1:] == ["PyTorch kernels (none was not found)"]


@needs_compiler
@pytest.mark.slow
def test_kernels_are_compiled_once(tmp_path: Path) -> None:
    """And again where what is there is damaged."""
    first, second = started(tmp_path), started(tmp_path)
    assert "compiling the kernels" in first.stdout
    assert second.stdout == first.stdout.splitlines()[-1] + "\n"
    (made,) = (tmp_path / "kanpinn").glob("*.so")
    made.write_text("no library")
    third = started(tmp_path).stdout.splitlines()
    assert "cannot be used" in third[0] and "compiling the kernels" in third[1]
    assert third[2:] == second.stdout.splitlines()
