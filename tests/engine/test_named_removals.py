"""Removals by the names that users give."""

import pytest

from snowball.engine.named_removals import named_removals
from snowball.engine.removal import RemovalError, removal_name


def names_of(layers: int, *names: str) -> list[str]:
    return [removal_name(one) for one in named_removals(layers, names)]


@pytest.mark.parametrize(
    ("names", "more"),
    [
        ([], []),
        (["attention"], ["0.attention", "1.attention", "2.attention"]),
        (["mlp"], ["0.mlp", "1.mlp", "2.mlp"]),
        (["pairs"], ["0+1", "0+2", "1+2"]),
        (["blocks:2"], ["0+1", "1+2"]),
        (["blocks:1"], []),
        (["2+0", "0+2", "1"], ["0+2"]),
        (["1.mlp+2.attention"], ["1.mlp+2.attention"]),
        (["intact"], ["intact"]),
    ],
)
def test_names_add_to_every_single_layer(names: list[str], more: list[str]) -> None:
    assert names_of(3, *names) == ["0", "1", "2", *more]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heads", "'heads' is no removal"),
        ("blocks:4", "blocks of 4 layers: the length must lie in 1..3"),
        ("blocks:", "'blocks:' is no removal"),
        ("blocks:-1", "'blocks:-1' is no removal"),
        ("", "'' is no removal"),
    ],
)
def test_a_name_that_says_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(RemovalError, match=message):
        named_removals(3, [name])
