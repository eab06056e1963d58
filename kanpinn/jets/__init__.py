"""Jets: values and input derivatives carried through a network together (forward Taylor mode)."""

from kanpinn.jets.functions import FUNCTIONS
from kanpinn.jets.jet import Jet, chain_polynomials, compose
from kanpinn.jets.spec import MAX_ORDER, JetSpec

__all__ = ["FUNCTIONS", "MAX_ORDER", "Jet", "JetSpec", "chain_polynomials", "compose"]
