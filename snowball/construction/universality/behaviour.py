"""Boolean functions of which layers are present, in disjunctive normal form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

# A truth table has 2^n rows.
_MOST_TABLE_LAYERS = 16


@dataclass(frozen=True, slots=True)
class Clause:
    """True if all layers of `present` are present and none of `absent` is.

    Raises:
        ValueError: a layer is asked to be both, or is no number of a layer.
    """

    present: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        # A set of another kind would be accepted here, and could not be hashed later.
        object.__setattr__(self, "present", _layers(self.present))
        object.__setattr__(self, "absent", _layers(self.absent))
        if both := sorted(self.present & self.absent):
            raise ValueError(f"layer {both[0]} cannot be both present and absent")

    @property
    def layers(self) -> frozenset[int]:
        return self.present | self.absent

    def __call__(self, present: Set[int]) -> bool:
        return self.present <= present and not self.absent & present


@dataclass(frozen=True, slots=True)
class Behaviour:
    """When an example is answered rightly: `clause_1 or clause_2 or ...`; no clause means never.

    Raises:
        ValueError: one of them is no clause.
    """

    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "clauses", tuple(self.clauses))
        for clause in self.clauses:
            if not isinstance(clause, Clause):
                raise ValueError(f"a behaviour consists of clauses, {clause!r:.60} is none")

    @classmethod
    def always(cls) -> Behaviour:
        return cls((Clause(),))

    @classmethod
    def never(cls) -> Behaviour:
        return cls(())

    @classmethod
    def needs_all(cls, layers: Iterable[int]) -> Behaviour:
        """Right if and only if all of these layers are present."""
        return cls((Clause(frozenset(layers)),))

    @classmethod
    def needs_any(cls, layers: Iterable[int]) -> Behaviour:
        """Right if and only if one of these layers is present."""
        return cls(tuple(Clause(frozenset({layer})) for layer in sorted(_layers(layers))))

    @classmethod
    def from_truth_table(
        cls, layers: Sequence[int], right: Callable[[frozenset[int]], bool]
    ) -> Behaviour:
        """The function `right` of the set of those `layers` that are present.

        Its clauses are disjoint: they are the leaves of a decision tree over the layers in order,
        in which a layer is asked for only where the answer depends on it.

        Raises:
            ValueError: there are too many layers for a table, or one stands there twice.
        """
        if len(_layers(layers)) < len(layers):
            raise ValueError(f"a truth table of the layers {list(layers)}: one stands there twice")
        if len(layers) > _MOST_TABLE_LAYERS:
            raise ValueError(
                f"a truth table of {len(layers)} layers has 2^{len(layers)} rows; give clauses, or "
                f"at most {_MOST_TABLE_LAYERS} layers"
            )
        return cls(tuple(_leaves(tuple(layers), Clause(), right)))

    @property
    def layers(self) -> frozenset[int]:
        """The layers that some clause mentions."""
        return frozenset().union(*(clause.layers for clause in self.clauses))

    @property
    def is_constant(self) -> bool:
        """Whether it is written as a constant: no clause at all, or one that is always true."""
        return not all(clause.layers for clause in self.clauses) or not self.clauses

    def renumbered(self, number: Callable[[int], int]) -> Behaviour:
        """The same function of layers that have other numbers."""
        return Behaviour(
            tuple(
                Clause(frozenset(map(number, c.present)), frozenset(map(number, c.absent)))
                for c in self.clauses
            )
        )

    def __call__(self, present: Set[int]) -> bool:
        return any(clause(present) for clause in self.clauses)


def _layers(layers: Iterable[int]) -> frozenset[int]:
    found = frozenset(layers)
    for layer in found:
        if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
            raise ValueError(f"layers are numbered 0, 1, ..; {layer!r:.60} is none")
    return found


def _leaves(
    layers: tuple[int, ...], path: Clause, right: Callable[[frozenset[int]], bool]
) -> list[Clause]:
    """Clauses below a node of the decision tree; two equal halves are one."""
    if not layers:
        return [path] if right(path.present) else []
    first, rest = layers[0], layers[1:]
    with_it = _leaves(rest, Clause(path.present | {first}, path.absent), right)
    without = _leaves(rest, Clause(path.present, path.absent | {first}), right)
    merged = [Clause(clause.present - {first}, clause.absent) for clause in with_it]
    if merged == [Clause(clause.present, clause.absent - {first}) for clause in without]:
        return merged
    return with_it + without
