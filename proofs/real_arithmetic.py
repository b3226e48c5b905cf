"""Deciding inequalities over the reals with z3: what is proved has no counterexample at all."""

from __future__ import annotations

from typing import Any

import z3

_MILLISECONDS = 60_000

Q: Any = z3.Q  # the rational number of two integers
both: Any = z3.And
either: Any = z3.Or


def reals(names: str) -> Any:
    """Real variables: one for one name, a list for several."""
    found = z3.Reals(names)
    return found if len(found) > 1 else found[0]


def holds(claim: Any, *hypotheses: Any) -> bool:
    """Whether the claim follows from the hypotheses over the reals; a counterexample gives False.

    Raises:
        TimeoutError: z3 does not decide.
    """
    solver = z3.Tactic("qfnra-nlsat").solver()
    solver.set("timeout", _MILLISECONDS)
    solver.add(*hypotheses, z3.Not(claim))
    answer = solver.check()
    if answer == z3.unknown:
        raise TimeoutError(f"z3 does not decide: {solver.reason_unknown()}")
    return answer == z3.unsat


def possible(*hypotheses: Any) -> bool:
    """Whether the hypotheses can hold together; from impossible ones everything would follow."""
    return not holds(z3.BoolVal(False), *hypotheses)
