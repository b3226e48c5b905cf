"""The residual stream: subspaces in order, without gaps, and refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snowball.construction.gadgets.residual_stream import ResidualStream

dimensions = st.dictionaries(st.text(min_size=1), st.integers(1, 9), min_size=1, max_size=6)


@given(dimensions, st.integers(0, 5))
def test_subspaces_fill_the_used_coordinates_in_order(sizes: dict[str, int], padding: int) -> None:
    stream = ResidualStream(sizes, sum(sizes.values()) + padding)
    taken = [i for name in stream for i in range(stream.width)[stream[name]]]
    assert list(stream) == list(sizes)
    assert taken == list(range(stream.used))
    assert stream.used == stream.width - padding
    assert all(stream[name].stop - stream[name].start == size for name, size in sizes.items())


def test_unknown_subspace_is_named_beside_the_known_ones() -> None:
    stream = ResidualStream({"const": 1, "code": 4}, 5)
    with pytest.raises(KeyError, match="no subspace 'cod'; there are const, code"):
        stream["cod"]


@pytest.mark.parametrize("dimension", [0, -1])
def test_empty_subspace_is_refused(dimension: int) -> None:
    with pytest.raises(
        ValueError, match=f"'code' needs a dimension of at least 1, not {dimension}"
    ):
        ResidualStream({"const": 1, "code": dimension}, 8)


def test_too_narrow_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="width 4 cannot hold subspaces of 5 dimensions"):
        ResidualStream({"const": 1, "code": 4}, 4)
