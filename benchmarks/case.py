"""What a layer benchmark asks for; the same for every contestant."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        task: ``forward`` (values), ``backward`` (values and the gradient of their mean square),
            ``jets`` (the output's Laplacian), ``laplacian`` (the gradient of its mean square) or
            ``jacobian`` (the Laplacian's derivatives with respect to all parameters by point;
            rows are made and dropped, chunk by chunk).
        widths: of the network, inputs first.
        intervals: of every spline, on [-1, 1].
        degree: of the splines; cubic ones have 3.
        points: in a batch, uniform in the square.
        dtype: ``float64`` or ``float32``.
        chunk: points worked on at a time by contestants whose temporaries should stay in the cache.
        ordered: whether neighbours follow each other, as among the points that kanpinn trains on.
    """

    task: str = "laplacian"
    widths: tuple[int, ...] = (2, 64, 64, 1)
    intervals: int = 20
    degree: int = 3
    points: int = 4096
    dtype: str = "float64"
    chunk: int = 512
    ordered: bool = False

    def to_json(self) -> str:
        """For a worker's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """What :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "widths": tuple(fields["widths"])})
