"""Regression of the user's own data, read from a CSV, NPZ or HDF5 file."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from kanpinn import AffineScaling, Box, DataError, ProblemError, Scaling, Site, read_table, split

from .data_fit import DataFit, Rows

Share = Annotated[float, Gt(0), Lt(1)]
Column = str | int


@dataclass(kw_only=True)
class Tabular(DataFit):
    """Fit of output columns as functions of input columns; one field per output column.

    The rows are shuffled and split into training, validation and test rows. The domain is the box
    of all rows' inputs, which the network reads scaled to [-1, 1]. The outputs are scaled by the
    training rows: "minmax" to [0, 1], "standard" to mean 0 and standard deviation 1; predictions
    are in the file's own units.

    Coordinates and fields need names that can stand in an expression. In a column's name every run
    of characters other than ASCII letters, digits and underscores becomes one underscore, and
    underscores at its ends are dropped; what is then empty, a keyword of Python, or begins with a
    digit gets ``column_`` in front, so does a name that the points have already, such as ``side``,
    and a name that is taken gets a number behind. So ``velocity [m/s]``
    becomes ``velocity_m_s``, and ``0`` becomes ``column_0``. The file's own names are kept in
    :attr:`columns`.

    Attributes:
        columns: column of the file by name of the coordinate or field.

    Raises:
        DataError: naming the file, what was found in it and what is allowed.
    """

    file: Annotated[Path, "CSV (.csv .tsv .txt .dat), NPZ (.npz) or HDF5 (.h5 .hdf5 .hdf) file"]
    input_columns: Annotated[
        tuple[Column, ...], "input columns; by default all that are not outputs (CSV only)"
    ] = ()
    output_columns: Annotated[
        tuple[Column, ...], "output columns; by default the last one (CSV only)"
    ] = ()
    delimiter: Annotated[
        str | None,
        "of a CSV file: a comma, a semicolon, a bar or tab; found from its text by default",
    ] = None
    group: Annotated[str | None, "of an HDF5 file; the root by default"] = None
    fractions: Annotated[
        tuple[Share, Share, Share], "shares of training, validation and test rows; their sum is 1"
    ] = (0.7, 0.15, 0.15)
    scaling: Annotated[Literal["minmax", "standard"], "how the outputs are scaled"] = "minmax"
    seed: Annotated[int, Ge(0), "of the split"] = 0

    summary = "outputs as functions of inputs, from a CSV, NPZ or HDF5 file"

    def __post_init__(self) -> None:
        table = read_table(
            self.file, self.input_columns, self.output_columns, self.delimiter, self.group
        )
        names = _identifiers((*table.input_names, *table.output_names))
        n_inputs = len(table.input_names)
        self.columns = dict(zip(names, (*table.input_names, *table.output_names), strict=True))
        self.fields = names[n_inputs:]
        try:
            lower, upper = table.inputs.min(axis=0), table.inputs.max(axis=0)
            self.domain = Box(tuple(lower), tuple(upper), names=names[:n_inputs])
            parts = split(len(table.inputs), self.fractions, self.seed)
            rows = [Rows(table.inputs[part], table.outputs[part]) for part in parts]
            self.training, self.validation, self.test = rows
            self.scales = self._fitted_scales(table.output_names)
        except (DataError, ProblemError) as error:
            raise DataError(f"data file {str(self.file)!r}: {error}") from error

    def evaluation_points(self) -> Tensor:
        """The test rows' inputs: the data need not fill the box."""
        return torch.tensor(self.test.inputs)

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Test error in scaled outputs, and ``test_rmse_<field>`` of every one in its own units."""
        rmse = np.sqrt(np.mean(np.square(self.test_errors(predict)), axis=0))
        own = {f"test_rmse_{name}": float(rmse[k]) for k, name in enumerate(self.fields)}
        return {**super().metrics(predict), **own}

    def _fitted_scales(self, output_names: Sequence[str]) -> dict[str, Scaling]:
        outputs = self.training.outputs
        if self.scaling == "minmax":
            fit = AffineScaling.fit_minmax(outputs, 0.0, 1.0, names=output_names)
        else:
            fit = AffineScaling.fit_standard(outputs, names=output_names)
        return {
            name: Scaling(shift=float(fit.shift[k]), scale=float(fit.scale[k]))
            for k, name in enumerate(self.fields)
        }


_TAKEN = {*dir(Site), *Site.__dataclass_fields__}  # p.side is the side of an interface


def _identifiers(columns: Sequence[str]) -> tuple[str, ...]:
    """Different identifiers for all columns, by the rule stated at :class:`Tabular`."""
    names: list[str] = []
    for column in columns:
        word = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_")
        if not word or word[0].isdigit() or keyword.iskeyword(word) or word in _TAKEN:
            word = f"column_{word}".rstrip("_")
        name, number = word, 2
        while name in names:
            name, number = f"{word}_{number}", number + 1
        names.append(name)
    return tuple(names)
