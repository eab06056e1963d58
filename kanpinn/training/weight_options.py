"""Options of the weights that change with training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from kanpinn.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Residual-based attention (Anagnostopoulos et al., arXiv 2307.00379).

    After every gradient step ``w_i <- decay w_i + rate |r_i| / max |r|``; the loss takes
    ``(w_i r_i)^2``. Least-squares and quasi-Newton phases keep the weights they find.
    """

    blocks: Annotated[tuple[str, ...], "blocks it acts on, as patterns"] = ("equation",)
    rate: Annotated[float, Gt(0), Lt(1), "rate of the weights"] = 1e-2
    decay: Annotated[float, Gt(0), Le(1), "share of the old weight kept at a step"] = 0.999
    initial: Annotated[float, Ge(0), "weights at the start"] = 1.0


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """Factors of whole blocks that change with training, so that no block outweighs the others.

    An update finds the size ``s_b`` of every block's loss and gives it the factor ``mean(s) /
    s_b``; the problem's fixed weights cancel but for a common factor. ``gradient_norm``: ``s_b``
    is the norm of the loss's gradient (Wang, Teng and Perdikaris, arXiv 2001.04536). ``ntk``: the
    trace of ``J_b J_b^T``, with ``J_b`` the Jacobian of the rows whose sum of squares is the
    loss, the rate at which gradient flow lowers it (Wang, Yu and Perdikaris, arXiv 2007.14527).
    """

    by: Annotated[Literal["ntk", "gradient_norm"], "what is made equal"] = "ntk"
    blocks: Annotated[tuple[str, ...], "blocks it acts on, as patterns"] = ("*",)
    every: Annotated[int, Gt(0), "steps between updates"] = 100
    memory: Annotated[float, Ge(0), Lt(1), "share of the old factor kept at an update"] = 0.9


@dataclass(frozen=True, kw_only=True)
class CausalOptions:
    """Weights in time: what is late counts once all that is earlier is solved (arXiv 2203.07404).

    The time interval is cut into equal slices. The rows of slice ``k`` have the weight
    ``exp(-epsilon sum_{j<k} L_j)`` in the loss, ``L_j`` the mean square of the rows in slice ``j``
    with the blocks' fixed weights; blocks at the initial time come before all slices. When the
    least weight is above ``threshold``, the next ``epsilon`` follows; after the last one all
    weights are one.
    """

    blocks: Annotated[tuple[str, ...], "blocks it acts on, as patterns"] = ("equation",)
    slices: Annotated[int, Ge(2), "slices of the time interval"] = 16
    epsilon: Annotated[
        tuple[Annotated[float, Gt(0)], ...], "how steeply weights fall, one after the other"
    ] = (100.0,)
    threshold: Annotated[float, Gt(0), Lt(1), "least weight at which epsilon changes"] = 0.99
    every: Annotated[
        int, Gt(0), "steps between updates; quasi-Newton methods start anew at each"
    ] = 1

    def __post_init__(self) -> None:
        if not self.epsilon:
            raise ConfigError(
                "training.causal.epsilon: found an empty list, allowed: positive numbers"
            )
