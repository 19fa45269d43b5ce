"""`where`: the place of a difference on one axis, and none for what is everywhere or scattered."""

from __future__ import annotations

import math

import pytest
import torch

from qtrace.numerics.relations import where


def test_channels_are_named_with_their_factor() -> None:
    wanted = torch.randn(1, 84, 64)
    candidate = wanted.clone()
    candidate[..., 17] *= -1
    relation = where(wanted, candidate, 1e-5)
    assert relation is not None
    assert relation.kind == "where"
    assert relation.error == 0.0
    assert relation.parameters == {
        "axis": -1,
        "size": 64,
        "count": 1,
        "indices": [[17, 17]],
        "share": 1 / 64,
        "factor": pytest.approx(-1.0),
    }


@pytest.mark.parametrize(
    ("axis", "touched", "ranges"), [(0, [2], [[2, 2]]), (1, [0, 3], [[0, 0], [3, 3]]), (2, [7, 8, 9, 15], None)]
)
def test_rows_heads_and_tokens_are_named(axis: int, touched: list[int], ranges: list[list[int]] | None) -> None:
    wanted = torch.randn(4, 8, 40, 16)
    noise = torch.zeros_like(wanted).index_fill(axis, torch.tensor(touched), 1.0) * torch.randn_like(wanted)
    relation = where(wanted, wanted + noise, 1e-5)
    assert relation is not None
    assert relation.parameters["axis"] == axis
    assert relation.parameters["indices"] == (ranges or [[7, 9], [15, 15]])
    assert relation.parameters["count"] == len(touched)
    assert "factor" not in relation.parameters
    assert "from" not in relation.parameters


@pytest.mark.parametrize("start", [1, 5, 80, 83])
def test_from_one_position_on(start: int) -> None:
    wanted = torch.randn(2, 84, 64)
    candidate = wanted.clone()
    candidate[:, start:] = torch.randn(2, 84 - start, 64)
    relation = where(wanted, candidate, 1e-5)
    assert relation is not None
    assert (relation.parameters["axis"], relation.parameters["from"]) == (1, start)
    assert relation.parameters["indices"] == [[start, 83]]


def test_what_is_below_the_tolerance_stays_out_and_is_the_error() -> None:
    wanted = torch.randn(84, 64)
    candidate = wanted + 1e-6 * torch.randn_like(wanted)
    candidate[:, 3] += 1
    relation = where(wanted, candidate, 1e-5)
    assert relation is not None
    assert relation.parameters["indices"] == [[3, 3]]
    assert relation.error is not None
    assert 0 < relation.error < 1e-5
    assert where(wanted, candidate, 1e-9) is None


def test_a_difference_that_is_everywhere_or_scattered_has_no_place() -> None:
    wanted = torch.randn(84, 64)
    assert where(wanted, torch.randn(84, 64), 1e-5) is None
    assert where(wanted, wanted.clone(), 1e-5) is None
    for count in (1, 2, 5, 40, 400):
        scattered = torch.zeros(84 * 64)
        scattered[torch.randperm(84 * 64)[:count]] = 1
        assert where(wanted, wanted + scattered.reshape(84, 64), 1e-5) is None


def test_a_few_channels_left_alone_are_no_place() -> None:
    wanted = torch.randn(84, 64)
    candidate = torch.cat([wanted[:, :3], torch.randn(84, 61)], 1)
    assert where(wanted, candidate, 1e-5) is None


def test_integers_and_constants_count_every_difference() -> None:
    wanted = torch.randint(0, 1000, (4, 84))
    candidate = wanted.clone()
    candidate[2] += 1
    relation = where(wanted, candidate, 0.5)
    assert relation is not None
    assert (relation.parameters["axis"], relation.parameters["indices"]) == (0, [[2, 2]])
    constant = torch.ones(84, 64)
    changed = constant.clone()
    changed[:, 5] = 2
    relation = where(constant, changed, 1e-5)
    assert relation is not None
    assert relation.parameters["indices"] == [[5, 5]]
    assert relation.parameters["factor"] == pytest.approx(2.0)


def test_many_ranges_are_cut_short_but_counted() -> None:
    wanted = torch.randn(84, 128)
    candidate = wanted.clone()
    candidate[:, ::3] += 1
    relation = where(wanted, candidate, 1e-5)
    assert relation is not None
    assert relation.parameters["count"] == 43
    assert len(relation.parameters["indices"]) == 16


@pytest.mark.parametrize(
    ("wanted", "candidate"),
    [
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.randn(4), torch.randn(5)),
        (torch.empty(0, 4), torch.empty(0, 4)),
        (torch.ones(40, 4), torch.full((40, 4), math.nan)),
        (torch.ones(1, 1), torch.zeros(1, 1)),
    ],
)
def test_edges_have_no_place(wanted: torch.Tensor, candidate: torch.Tensor) -> None:
    assert where(wanted, candidate, 1e-5) is None
