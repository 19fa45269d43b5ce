"""Faults put into real source: exactly once, for one module, visible to inspect and tracebacks."""

from __future__ import annotations

import copy
import inspect
import traceback

import pytest
import torch
from torch import nn

from bench.faults import models
from bench.faults.convnet import ResidualBlock
from bench.faults.rewrite import Changes, changes_in, rewrite


def _block() -> ResidualBlock:
    torch.manual_seed(0)
    return ResidualBlock(4).eval()


def test_only_this_module_changes() -> None:
    block, other, x = _block(), _block(), torch.randn(1, 4, 5, 5)
    before = block(x)
    rewrite(block, "out = out + identity", "out = out - identity")
    assert not torch.equal(block(x), before)
    assert torch.equal(other(x), before)
    assert isinstance(block, ResidualBlock)
    assert type(block).__name__ == "ResidualBlock"
    assert torch.equal(copy.deepcopy(block)(x), block(x))


def test_changed_source_is_what_inspect_shows() -> None:
    block = _block()
    line = inspect.getsource(ResidualBlock.forward).splitlines().index("        out = out + identity")
    start = ResidualBlock.forward.__code__.co_firstlineno
    rewrite(block, "out = out + identity", "out = out - identity")
    source = inspect.getsource(type(block).forward)
    assert "out = out - identity" in source
    assert "out = out + identity" not in source
    assert type(block).forward.__code__.co_firstlineno == start
    assert source.splitlines()[line] == "        out = out - identity"
    assert type(block).forward.__code__.co_filename.startswith("<convnet.py changed in ResidualBlock.forward")


def test_the_changed_lines_are_known() -> None:
    block = _block()
    assert changes_in(block) is None
    lines, start = inspect.getsourcelines(ResidualBlock.forward)
    place = start + [line.strip() for line in lines].index("out = out + identity")
    rewrite(block, "out = out + identity", "out = out + 1\n        out = out + identity")
    assert changes_in(block) == Changes(frozenset(), frozenset({place}))


def test_traceback_shows_the_faulty_line() -> None:
    block = _block()
    rewrite(block, "out = out + identity", "out = out + identity[:, :, :2]")
    with pytest.raises(RuntimeError) as raised:
        block(torch.randn(1, 4, 5, 5))
    text = "".join(traceback.format_exception(raised.value))
    assert "changed in ResidualBlock.forward" in text
    assert "out = out + identity[:, :, :2]" in text


@pytest.mark.parametrize(
    ("old", "times"), [("identity = y", 0), ("self.bn", 2), ("def __init__", 0), ("class ResidualBlock", 0)]
)
def test_snippet_must_occur_exactly_once(old: str, times: int) -> None:
    with pytest.raises(ValueError, match=rf"occurs {times} times in ResidualBlock\.forward; expected exactly once"):
        rewrite(_block(), old, "")


def test_function_of_the_same_file_changes_for_one_module() -> None:
    model = copy.deepcopy(models.llama())
    first, second = (layer.self_attn for layer in model.model.layers)
    inputs = models.uncached()
    before = model(**inputs).logits
    rewrite(first, "* scaling", "* scaling * 1", within="eager_attention_forward")
    assert torch.equal(model(**inputs).logits, before)
    rewrite(second, "* scaling", "* scaling * 2", within="eager_attention_forward")
    assert not torch.equal(model(**inputs).logits, before)
    assert (
        type(first).forward.__globals__["eager_attention_forward"]
        is not (type(second).forward.__globals__["eager_attention_forward"])
    )


def test_method_beside_forward() -> None:
    model = copy.deepcopy(models.bert())
    rewrite(model.bert, "self.config.is_decoder", "not self.config.is_decoder", within="_create_attention_masks")
    assert not torch.equal(model(**models.padded()).logits, models.bert()(**models.padded()).logits)


def test_rewritten_twice_is_refused() -> None:
    block = _block()
    rewrite(block, "out = out + identity", "out = out")
    with pytest.raises(ValueError, match="ResidualBlock has been rewritten before"):
        rewrite(block, "out = out", "out = out + 1")


def test_method_that_calls_super_is_refused() -> None:
    embedding = copy.deepcopy(models.bart().model.encoder.embed_positions)
    assert isinstance(embedding, nn.Embedding)
    with pytest.raises(ValueError, match=r"uses super\(\), which would call the unchanged method"):
        rewrite(embedding, "position_ids + self.offset", "position_ids")
