"""A case that was right must not turn wrong, nor claim too much: each id in bench/faults/right.txt is asked again."""

from __future__ import annotations

import pytest

from bench.faults import score

RIGHT = sorted(score.stored_right())


def test_the_stored_list_is_nearly_the_whole_bench() -> None:
    # An emptied list would make the test below pass for nothing.
    assert len(RIGHT) >= 165


@pytest.mark.parametrize("architecture", sorted({name.split("/")[0] for name in RIGHT}))
def test_what_was_right_stays_right(architecture: str) -> None:
    chosen = [name for name in RIGHT if name.startswith(f"{architecture}/")]
    results = score.run(chosen)
    wrong = [result for result in results if not result.right]
    assert [(result.id, result.answers, result.named, result.outcome) for result in wrong] == []
    assert [(result.id, result.overclaims) for result in results if result.overclaims] == []
