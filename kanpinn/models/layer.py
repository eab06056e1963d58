"""The layer interface: jets to features, features to outputs by one matrix product.

Every layer of every model is a nonlinear map to features followed by a linear contraction with
its coefficients. That split is what least-squares optimisers and faster kernels rely on: the
Jacobian of a layer is an outer product of its features and the adjoint of its output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from kanpinn.jets import JetSpec, compose
from kanpinn.jets.functions import FUNCTIONS
from kanpinn.kernels import compiles
from kanpinn.models.features import DenseFeatures, Features
from kanpinn.models.tape import LayerRecord, Tape


class Layer(nn.Module, ABC):
    """One layer: ``y = F(z) C^T`` on every component of a jet.

    Attributes:
        in_width: number of input channels.
        out_width: number of outputs.
        coefficients: parameter ``(out_width, n_features)``, or what of it belongs to a basis.
    """

    in_width: int
    out_width: int
    coefficients: nn.Parameter

    @abstractmethod
    def features(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Feature jets ``(K, n, n_features)`` of input jets ``z`` of shape ``(K, n, in_width)``."""

    @property
    def fixed_features(self) -> bool:
        """Whether the features depend on the input alone, and on no trainable parameter."""
        return True

    def suits_kernel(self, for_jacobian: bool = False) -> bool:
        """Whether the compiled kernel, where there is one, does its part without features."""
        return False

    def needs_features(self, z: Tensor, for_jacobian: bool = False) -> bool:
        """Whether outputs at input jets ``z``, or what a Jacobian needs, are made from features."""
        return not (self.suits_kernel(for_jacobian) and compiles(z))

    @property
    def weights(self) -> Tensor:
        """What features are contracted with, ``(out_width, n_features)``."""
        return self.coefficients

    @property
    def n_features(self) -> int:
        """Number of features of a point."""
        return self.coefficients.shape[1]

    @property
    def numbers_per_point(self) -> int:
        """About how many numbers an evaluation of values holds for every point, for budgets."""
        return 6 * self.n_features

    def contract(self, features: Tensor) -> Tensor:
        """Output jets ``(K, n, out_width)`` of feature jets ``(K, n, n_features)``."""
        return features @ self.weights.mT

    def forward(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Output jets ``(K, n, out_width)`` of input jets ``(K, n, in_width)``."""
        return self.contract(self.features(z, spec))

    def features_of_copies(self, z: Tensor, spec: JetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """The features, and a copy for every point of each trainable they depend on.

        The copies, ``(n, ...)`` by parameter name, are leaves: one reverse pass gives every
        point's own derivatives.
        """
        return self.features(z, spec), {}

    def contracted(self, features: Tensor) -> dict[str, Tensor]:
        """By parameter ``(out_width, f)``, the features ``(K, n, f)`` it is contracted with."""
        return {"coefficients": features}

    def recorded(
        self, z: Tensor, spec: JetSpec, features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Features], dict[str, Tensor]]:
        """Output jets, and what the Jacobian needs of them.

        Args:
            z: input jets ``(K, n, in_width)``.
            spec: names the components.
            features: of ``z``, where they were made before.

        Returns:
            Output jets ``(K, n, out_width)``, in a graph that leads back to ``z``; features by the
            parameter they are contracted with; copies, see :meth:`features_of_copies`.
        """
        copies: dict[str, Tensor] = {}
        if features is None:
            features, copies = self.features_of_copies(z, spec)
        held = self.contracted(features.detach())
        found: dict[str, Features] = {name: DenseFeatures(part) for name, part in held.items()}
        return self.contract(features), found, copies

    def columns(self, adjoint: Tensor, copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every point's derivatives with respect to all other parameters, ``(n, numel)`` by name.

        Args:
            adjoint: derivatives of a point's residual with respect to its outputs ``(K, n, out)``.
            copies: the same with respect to the copies of :meth:`features_of_copies`.
        """
        return {}


class Network(nn.Module, ABC):
    """A chain of layers that carries jets."""

    layers: nn.ModuleList

    @property
    def chain(self) -> tuple[Layer, ...]:
        """The layers, typed."""
        return tuple(layer for layer in self.layers if isinstance(layer, Layer))

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels before the first layer and after each layer."""
        return (self.chain[0].in_width, *(layer.out_width for layer in self.chain))

    @property
    def smoothness(self) -> int | None:
        """Highest derivative whose gradient still exists; ``None`` when there is no limit."""
        return None

    def jet(
        self,
        z: Tensor,
        spec: JetSpec,
        first_features: Tensor | None = None,
        tape: Tape | None = None,
    ) -> Tensor:
        """Output jets ``(K, n, out)`` of input jets ``z``, ``(K, n, in)``.

        ``first_features`` are the first layer's features, where they were computed before: they
        do not change while the points stay and that layer's knots are fixed. A ``tape`` records
        what the Jacobian needs.
        """
        if tape is not None:
            return self._recorded(z, spec, first_features, tape)
        first, *rest = self.chain
        z = first(z, spec) if first_features is None else first.contract(first_features)
        for layer in rest:
            z = layer(z, spec)
        return z

    def _recorded(
        self, z: Tensor, spec: JetSpec, first_features: Tensor | None, tape: Tape
    ) -> Tensor:
        for number, layer in enumerate(self.chain):
            known = first_features if number == 0 else None
            z, features, copies = layer.recorded(z, spec, known)
            tape.layers.append(LayerRecord(tape.part, number, features, z, copies))
        return z

    def forward(self, z: Tensor) -> Tensor:
        """Values ``(n, out)`` at inputs ``(n, in)``."""
        return self.jet(z[None], JetSpec.value_only(1))[0]


def apply_elementwise(name: str, z: Tensor, spec: JetSpec) -> Tensor:
    """Jets of an elementwise function named in :data:`kanpinn.jets.FUNCTIONS`."""
    return compose(z, FUNCTIONS[name](z[0], spec.order), spec)
