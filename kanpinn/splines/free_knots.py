"""Free knots: breakpoints as a function of unconstrained logits, ordered by construction."""

from __future__ import annotations

import torch
from torch import Tensor

from kanpinn.errors import KnotError
from kanpinn.splines.knots import Knots

# Share of the mean spacing below which no interval can shrink.
DEFAULT_FLOOR = 0.05


def knots_from_logits(
    logits: Tensor, lower: float | Tensor, upper: float | Tensor, floor: float = DEFAULT_FLOOR
) -> Tensor:
    """Padded breakpoints of free knots, differentiable with respect to the logits.

    Spacings ``h_j = (b - a) (floor / n + (1 - floor) softmax(s)_j)`` and their cumulative sums;
    the last breakpoint is ``b`` exactly. The floor is a share of the mean spacing, so that it
    halves when every interval is halved: the midpoint refinement of knots above the floor is
    above its own floor, and has the logits ``s``, each twice, up to a constant.

    Args:
        logits: ``s``, ``(channels, n_max)``, ``-inf`` behind each channel's last interval.
        lower: ``a``, for all channels or ``(channels, 1)``.
        upper: ``b``, likewise.
        floor: share of the mean spacing kept by every interval, between 0 and 1.

    Returns:
        ``(channels, n_max + 1)``, ``+inf`` behind each channel's last breakpoint.

    Raises:
        KnotError: if the floor is not between 0 and 1.
    """
    _check_floor(floor)
    filled = ~torch.isneginf(logits)  # (channels, n_max)
    # Counts in the logits' own type: an integer tensor would divide in the default type.
    n = filled.sum(1, keepdim=True).to(logits.dtype)  # (channels, 1)
    share = floor / n + (1.0 - floor) * torch.softmax(logits, 1)
    sums = torch.where(filled, share, 0.0).cumsum(1)
    sums = sums / sums[:, -1:]  # takes out what the rounding of the softmax adds up to
    a, b = (
        torch.as_tensor(end, dtype=logits.dtype, device=logits.device) for end in (lower, upper)
    )
    a, b = (end.reshape(-1, 1).expand(len(logits), 1) for end in (a, b))
    position = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    inner = torch.where(position < n, a + (b - a) * sums, torch.where(position == n, b, torch.inf))
    return torch.cat([a, inner], 1)


def logits_from_breakpoints(knots: Knots, floor: float = DEFAULT_FLOOR) -> Tensor:
    """Logits whose free knots are the given ones, to round-off: the inverse of the above.

    ``s_j = log(h_j / (b - a) - floor / n)``.

    Args:
        knots: any knots whose spacings are above the floor.
        floor: share of the mean spacing kept by every interval, between 0 and 1.

    Returns:
        ``(channels, n_max)``, ``-inf`` behind each channel's last interval.

    Raises:
        KnotError: if a spacing is below the floor, or the floor is not between 0 and 1.
    """
    _check_floor(floor)
    logits = knots.breakpoints[0].new_full((knots.channels, max(knots.n_intervals)), -torch.inf)
    for channel, t in enumerate(knots.breakpoints):
        wide = t.double()
        length, n = wide[-1] - wide[0], len(wide) - 1
        excess = wide.diff() / length - floor / n
        # Round-off of breakpoints in the knots' own type; below it an interval is at the floor.
        noise = 8 * torch.finfo(t.dtype).eps * float(wide.abs().max() / length)
        if bool((excess < -noise).any()):
            at = int(excess.argmin())
            raise KnotError(
                f"interval {at} of channel {channel} has length {float(wide.diff()[at]):.3e}, "
                f"below the floor {floor:g} * (b - a) / n = {floor * float(length) / n:.3e}"
            )
        # An interval at the floor has no finite logit; so small an excess moves no knot.
        logits[channel, :n] = excess.clamp(min=torch.finfo(t.dtype).eps / n).log()
    return logits


def _check_floor(floor: float) -> None:
    if not 0.0 < floor < 1.0:
        raise KnotError(f"floor of the knot spacing must be between 0 and 1, found {floor}")
