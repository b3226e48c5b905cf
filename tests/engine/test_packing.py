"""Packed rows against the rows that each continuation would have alone."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snowball.engine.packing import (
    Row,
    RowBatch,
    RowGroup,
    batch_rows,
    group_bundles,
    pack_row,
    plain_rows,
)
from snowball.tasks.item import Item

CPU = torch.device("cpu")
TOKENS = st.integers(0, 9)
Tokens = tuple[int, ...]


@st.composite
def items(draw: st.DrawFn) -> Item:
    """Short items of 1 to 4 continuations; half of them leave leading tokens out of the score."""
    context = draw(st.lists(TOKENS, min_size=1, max_size=5))
    texts = st.lists(TOKENS, min_size=1, max_size=4).map(tuple)
    continuations = tuple(draw(st.lists(texts, min_size=1, max_size=4)))
    skips = tuple(draw(st.integers(0, len(text) - 1)) for text in continuations)
    return Item("drawn", tuple(context), continuations, skips if draw(st.booleans()) else ())


def alone(item: Item, choice: int) -> Tokens:
    """The tokens that the model reads for one continuation."""
    return (*item.context, *item.continuations[choice][:-1])


def targets_alone(item: Item, choice: int) -> list[tuple[Tokens, int]]:
    """For each token that counts: everything before it, and the token."""
    whole, start = (*item.context, *item.continuations[choice]), len(item.context)
    skipped = item.unscored[choice] if item.unscored else 0
    return [(whole[:end], whole[end]) for end in range(start + skipped, len(whole))]


def seen_by(batch: RowBatch, row: int, place: int) -> list[int]:
    return batch.tree_mask()[row, 0, place].nonzero()[:, 0].tolist()


def check_rows(item: Item, rows: Sequence[Row]) -> None:
    """What each target sees, at which positions, is what it sees alone; so is what it predicts."""
    batch = batch_rows(RowGroup.of(rows), CPU)
    found: dict[int, list[tuple[Tokens, int]]] = {}
    for index, row in enumerate(rows):
        for target in row.targets:
            seen = seen_by(batch, index, target.position)
            ids = tuple(batch.ids[index, seen].tolist())
            assert batch.positions[index, seen].tolist() == list(range(len(ids)))
            found.setdefault(target.continuation, []).append((ids, target.token))
    assert found == {
        choice: targets_alone(item, choice) for choice in range(len(item.continuations))
    }


# Rows


@given(items())
def test_each_target_of_a_packed_row_sees_what_it_would_see_alone(item: Item) -> None:
    row = pack_row(0, item)
    assert len(row) == len(item.context) + sum(len(c) - 1 for c in item.continuations)
    check_rows(item, [row])


@given(items())
def test_plain_rows_are_the_continuations_one_by_one(item: Item) -> None:
    rows = plain_rows(3, item)
    assert [row.ids for row in rows] == [alone(item, c) for c in range(len(item.continuations))]
    assert all(row.positions == tuple(range(len(row))) for row in rows)
    assert not any(row.branched for row in rows)
    assert {row.item for row in rows} == {3}
    check_rows(item, rows)


@given(items())
def test_each_token_sees_its_context_and_its_own_branch_up_to_itself(item: Item) -> None:
    row = pack_row(0, item)
    batch = batch_rows(RowGroup.of([row]), CPU)
    # The branches by hand: which place of the row holds which token of which continuation.
    context = list(range(len(item.context)))
    place = len(context)
    for at in context:
        assert seen_by(batch, 0, at) == context[: at + 1]
    for continuation in item.continuations:
        branch = list(range(place, place + len(continuation) - 1))
        for depth, at in enumerate(branch, start=1):
            assert seen_by(batch, 0, at) == context + branch[:depth]
        place += len(branch)
    assert place == len(row)


@given(st.lists(items(), min_size=1, max_size=4))
def test_padding_and_other_rows_are_never_seen(drawn: list[Item]) -> None:
    rows = [pack_row(index, item) for index, item in enumerate(drawn)]
    batch = batch_rows(RowGroup.of(rows), CPU)
    assert batch.real.sum(1).tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        single = batch_rows(RowGroup.of([row]), CPU)
        length = len(row)
        assert batch.ids[index, :length].tolist() == list(row.ids)
        mask = batch.tree_mask()[index, 0]
        assert torch.equal(mask[:length, :length], single.tree_mask()[0, 0])
        padding = torch.eye(batch.ids.shape[1], dtype=torch.bool)
        assert torch.equal(mask[length:], padding[length:])
        assert not mask[:length, length:].any()


def test_a_row_with_one_branch_is_plain_text() -> None:
    assert not pack_row(0, Item("i", (1, 2), ((3, 4, 5),))).branched
    assert not pack_row(0, Item("i", (1, 2), ((3, 4, 5), (6,)))).branched
    assert not pack_row(0, Item("i", (1, 2), ((3,), (6,)))).branched
    assert pack_row(0, Item("i", (1, 2), ((3, 4), (6, 7)))).branched


@given(items())
def test_the_longest_row_is_known(item: Item) -> None:
    assert item.longest == max(map(len, plain_rows(0, item)))


# Refusals


@pytest.mark.parametrize(
    ("context", "continuations", "unscored", "message"),
    [
        ((), ((1,),), (), "f:3: the context has no tokens; begin it with BOS or EOS"),
        ((1,), (), (), "f:3: every continuation must have at least one token"),
        ((1,), ((2,), ()), (), "f:3: every continuation must have at least one token"),
        ((1,), ((2,), (3, 4)), (0, 2), "f:3: every continuation must have a token that is scored"),
        ((1,), ((2,), (3, 4)), (0, -1), "f:3: every continuation must have a token that is scored"),
        ((1,), ((2,), (3, 4)), (0,), "shorter"),
    ],
)
def test_impossible_items_are_refused(
    context: Tokens, continuations: tuple[Tokens, ...], unscored: Tokens, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Item("f:3", context, continuations, unscored)


# Bundles


def bundles_of(drawn: Sequence[tuple[Item, bool]]) -> list[list[Row]]:
    return [
        [pack_row(index, item)] if packed else plain_rows(index, item)
        for index, (item, packed) in enumerate(drawn)
    ]


@given(
    st.lists(st.tuples(items(), st.booleans()), max_size=12),
    st.integers(1, 60),
)
def test_bundles_are_grouped_once_each_within_the_budget_and_by_kind(
    drawn: list[tuple[Item, bool]], budget: int
) -> None:
    bundles = bundles_of(drawn)
    groups = group_bundles(bundles, budget)
    grouped = [row for group in groups for row in group.rows]
    assert sorted(map(id, grouped)) == sorted(id(row) for bundle in bundles for row in bundle)
    for group in groups:
        members = {row.item for row in group.rows}
        assert len(members) == 1 or group.places <= budget
        assert group.places == len(group.rows) * max(map(len, group.rows))
        # The rows of an item are all here, in order.
        for item in members:
            assert [row for row in group.rows if row.item == item] == bundles[item]
        assert len({any(row.branched for row in bundles[item]) for item in members}) == 1


@given(st.lists(items(), min_size=1, max_size=12), st.integers(1, 60))
def test_the_longest_bundles_of_a_kind_come_first(drawn: list[Item], budget: int) -> None:
    """So that memory runs out in the first batch, if it does at all."""
    groups = group_bundles(bundles_of([(item, True) for item in drawn]), budget)
    for kind in (True, False):
        lengths = [group.width for group in groups if group.takes_tree_mask is kind]
        assert lengths == sorted(lengths, reverse=True)


# Lines


def fills(drawn: Sequence[Item], budget: int) -> list[RowGroup]:
    bundles = bundles_of([(item, True) for item in drawn])
    return group_bundles(bundles, budget, share_below=inf)


@given(st.lists(items(), min_size=1, max_size=12), st.integers(1, 60))
def test_short_rows_fill_what_longer_ones_leave_of_their_lines(
    drawn: list[Item], budget: int
) -> None:
    groups = fills(drawn, budget)
    rows = [row for group in groups for row in group.rows]
    assert sorted(row.item for row in rows) == list(range(len(drawn)))
    gaps: list[int] = []
    for group in groups:
        assert len(group.rows) == 1 or group.places <= budget
        assert group.width == max(map(len, group.rows))  # no line is longer than a row has to be
        assert group.tokens == sum(map(len, group.rows))
        for line in group.lines:
            # What begins a line has no room in those before it, of whatever group.
            assert all(len(line[0]) > gap for gap in gaps)
            gaps.append(group.width - sum(map(len, line)))
        if not group.takes_tree_mask:  # the model's own mask knows one row a line
            assert all(len(line) == 1 for line in group.lines)


def test_rows_beyond_a_window_have_lines_of_their_own() -> None:
    """The mask of a shared line would show them more than the window does."""
    texts = [Item(str(size), (1,) * (size - 1), ((2, 3),)) for size in (10, 8, 4, 4, 4)]
    bundles = bundles_of([(item, True) for item in texts])

    def lines(share_below: float) -> list[list[tuple[int, ...]]]:
        groups = group_bundles(bundles, 30, share_below=share_below)
        return [[tuple(map(len, line)) for line in group.lines] for group in groups]

    assert lines(inf) == lines(10) == [[(10,), (8,), (4, 4)], [(4,)]]
    assert lines(9) == [[(10,)], [(8,), (4, 4), (4,)]]
    assert lines(3) == lines(0) == [[(10,), (8,), (4,)], [(4,), (4,)]]


@given(st.lists(items(), min_size=1, max_size=6), st.integers(20, 60), st.integers(0, 1))
def test_rows_of_a_line_see_what_they_would_see_alone(
    drawn: list[Item], budget: int, prefix_length: int
) -> None:
    # All contexts begin with the same token, and have one more.
    same = [replace(item, context=(0, *item.context)) for item in drawn]
    bundles = bundles_of([(item, True) for item in same])
    groups = group_bundles(bundles, budget, share_below=inf, prefix_length=prefix_length)
    for group in groups:
        batch = batch_rows(group, CPU)
        assert batch.size == group.places
        assert int(batch.real.sum()) + prefix_length == group.tokens
        ids = torch.cat([batch.prefix, batch.ids.flatten()])
        positions = torch.cat([torch.arange(prefix_length), batch.positions.flatten()])
        mask, width = batch.tree_mask()[:, 0], batch.ids.shape[1]
        found: dict[tuple[int, int], list[tuple[Tokens, int]]] = {}
        for index, row in enumerate(batch.rows):
            for target in row.targets:
                if target.position < prefix_length:
                    continue
                at = [torch.tensor([number]) for number in (index, target.position)]
                place = int(batch.places(*at)) - prefix_length
                line, column = divmod(place, width)
                seen = mask[line, column].nonzero()[:, 0]
                behind = seen >= prefix_length
                places = torch.where(behind, seen + line * width, seen)
                assert positions[places].tolist() == list(range(len(places)))
                key = (row.item, target.continuation)
                found.setdefault(key, []).append((tuple(ids[places].tolist()), target.token))
        assert found == {
            (row.item, choice): targets_alone(same[row.item], choice)
            for row in group.rows
            for choice in range(len(same[row.item].continuations))
        }
        # Padding sees the prefix and itself, so that its softmax is over something.
        padding = mask[~batch.real]
        assert (padding.sum(1) == prefix_length + 1).all()


def test_a_budget_that_holds_all_gives_one_group_of_each_kind() -> None:
    branched, plain = Item("b", (1, 2), ((3, 4), (5, 6))), Item("p", (1, 2), ((3, 4),))
    groups = group_bundles(bundles_of([(i, True) for i in (plain, branched, plain, branched)]), 99)
    assert [[row.item for row in group.rows] for group in groups] == [[1, 3], [0, 2]]


def test_behind_a_prefix_there_is_one_kind_of_rows() -> None:
    """All of them take a mask there, and another batch would run the prefix again."""
    branched, plain = Item("b", (1, 2), ((3, 4), (5, 6))), Item("p", (1, 2), ((3, 4),))
    bundles = bundles_of([(i, True) for i in (plain, branched, plain, branched)])
    (group,) = group_bundles(bundles, 99, prefix_length=1)
    assert sorted(row.item for row in group.rows) == [0, 1, 2, 3]
