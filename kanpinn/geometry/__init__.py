"""Where equations hold: points, the regions they are placed in, and domains.

A region maps the unit cube to sites. Every way of sampling (grids, random and quasi-random
sequences, later points chosen by residual) therefore works in every region, and a new shape needs
its maps alone.
"""

from kanpinn.geometry.box import INTERFACE_GAP, Box, Face, Interface, Interior, PeriodicPair
from kanpinn.geometry.domain import Domain
from kanpinn.geometry.graded import Graded
from kanpinn.geometry.order import neighbour_order
from kanpinn.geometry.points import Points
from kanpinn.geometry.regions import FixedPoints, Kind, Region, RegionUnion

__all__ = [
    "INTERFACE_GAP",
    "Box",
    "Domain",
    "Face",
    "FixedPoints",
    "Graded",
    "Interface",
    "Interior",
    "Kind",
    "PeriodicPair",
    "Points",
    "Region",
    "RegionUnion",
    "neighbour_order",
]
