"""A plan's record, its figures, and how it is printed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
from jax.sharding import NamedSharding

from muon_optax._mesh.checks import Use
from muon_optax._mesh.dims import spec_of
from muon_optax._mesh.kinds import Kind, Leaf
from muon_optax._mesh.owners import Owned
from muon_optax._mesh.placement import AnyMesh, Placement
from muon_optax._mesh.stacks import Stack


@dataclass(frozen=True)
class Plan:
    """The plan of an update on a mesh, from :func:`muon_optax.plan`. ``print`` it, or give it to ``muon(shardings=)``.

    Its figures are predictions, and tests compare them with compiled programs.

    Args:
        placement: The shardings in which updates come and leave, by path.
        uses: Shape, layout, dtype and orthogonalizer of every parameter that is a matrix, by path.
        leaves: The same parameters, with fused projections cut into blocks.
        owned: For every kind, the matrices of each owner.
        loads: The cost of every device's matrices, in multiplications and additions.
        batches: The stacks that travel together.
        state_bytes: The bytes of the optimizer's state that one device keeps, by memory (``"device"`` and
            ``"pinned_host"``, its host's). Empty unless :func:`muon_optax.plan` was told the optimizer.
    """

    placement: Placement
    uses: Mapping[str, Use]
    leaves: tuple[Leaf, ...]
    owned: Mapping[Kind, Owned]
    loads: np.ndarray
    batches: tuple[tuple[Stack, ...], ...]
    state_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def mesh(self) -> AnyMesh:
        """The mesh."""
        return self.placement.mesh

    @property
    def shardings(self) -> Mapping[str, NamedSharding]:
        """The shardings of the parameters, by path."""
        return self.placement.back

    @property
    def over(self) -> str | None:
        """The mesh axis over which momentum is spread, or ``None``."""
        return self.placement.over

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return self.loads.size

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of matrix products on the busiest device, within 2% for zeros."""
        return float(self.loads.max())

    @cached_property
    def ideal_flops(self) -> float:
        """The same if all devices shared all products evenly."""
        return float(self.loads.mean())

    @property
    def flops_over_ideal(self) -> float:
        """The work of the busiest device over an even share, which is 1 if no device waits for another."""
        return self.flops / self.ideal_flops if self.ideal_flops else 1.0

    @property
    def bytes(self) -> float:
        """Bytes that one device sends, there and back, by the ring formula."""
        return sum(size for _, size in self._collectives)

    @property
    def collectives(self) -> dict[str, int]:
        """The collectives of one update, by name. The number of Newton-Schulz steps does not change them."""
        return dict(Counter(name for name, _ in self._collectives))

    @cached_property
    def _collectives(self) -> list[tuple[str, float]]:
        found = []
        for stack in chain.from_iterable(self.batches):
            for way in (stack.there, stack.back):
                # An owner keeps its own part. In an all-gather along a ring it passes on all parts but one.
                if way.devices > 1:
                    found.append(("all-to-all", way.bytes * (way.devices - 1) / way.devices))
            if stack.back.copies > 1:
                found.append(("all-gather", stack.back.bytes * (stack.back.copies - 1)))
        return found

    @cached_property
    def peak_bytes(self) -> int:
        """Bytes of the stacks that a device holds at once, packed and received, there and back."""
        held = []
        for batch in self.batches:
            ways = [(stack.there, stack.back) for stack in batch if stack.pool]
            # Results are gathered from all copies. On the way there, each device packs for its own copy only.
            held.append(sum(2 * there.bytes + (1 + back.copies) * back.bytes for there, back in ways))
        return max(held, default=0)

    def __str__(self) -> str:
        """A line for each kind, then the totals."""
        collectives = ", ".join(f"{number} {name}" for name, number in self.collectives.items()) or "no collectives"
        share = f"{self.flops_over_ideal:.2f} times an even share"
        batches = f"{len(self.batches)} batch{'es' if len(self.batches) != 1 else ''}"
        lines = [
            f"mesh {', '.join(f'{axis}={size}' for axis, size in self.mesh.shape.items())}: {self.devices} devices",
            *(self._line(kind) for kind in self.owned),
            f"products: {1e-9 * self.flops:,.4g} GFLOP on the busiest device, {share}",
            f"travel: {1e-6 * self.bytes:,.4g} MB sent by a device, {collectives}, {batches}",
            f"memory: {1e-6 * self.peak_bytes:,.4g} MB of stacks on a device at once",
        ]
        if self.state_bytes:
            # Counters alone are no thousandth.
            device, host = (round(1e-6 * self.state_bytes[memory], 3) for memory in ("device", "pinned_host"))
            lines.append(f"state: {device:,.4g} MB on a device" + (f", {host:,.4g} MB in host memory" if host else ""))
        return "\n".join(lines)

    def _line(self, kind: Kind) -> str:
        numbers = [len(own) for own in self.owned[kind]]
        # Along mesh axes outside the pool, every part of the experts or layers has owners of its own.
        total = sum(numbers) * self.devices // len(numbers)
        # A fused projection is orthogonalized in blocks, which have shapes of their own.
        shapes = " + ".join(f"{rows} x {columns}" for rows, columns in kind.layout.matrix_shapes(kind.shape))
        each = f"{min(numbers)} to {max(numbers)}" if min(numbers) < max(numbers) else f"{max(numbers)}"
        travel = f"from {spec_of(kind.there.dims)} to {spec_of(kind.back.dims)} in {kind.dtype}"
        others = [axis for axis in self.placement.sizes if axis not in kind.pool]
        by = f", orthogonalized as {kind.orthogonalizer!r} says" if kind.orthogonalizer else ""
        among = f", stacks over {', '.join(others)}" if others else ""
        return f"{total} of {shapes}: {each} a device, {travel if kind.pool else 'where they are'}{among}{by}"
