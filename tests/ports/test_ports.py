"""Ports by other authors: a correct one is clean, and with one weight row changed that module is named."""

from __future__ import annotations

import copy
from importlib import import_module
from types import ModuleType

import pytest
import torch

import qtrace
from qtrace.report.records import Outcome

PORTS = ("neox_split_qkv", "llama_fused_qkv", "vit_timm", "gru_from_cells", "unet")


def port_of(name: str) -> ModuleType:
    return import_module(f"tests.ports.{name}")


FAULTS = [(name, place) for name in PORTS for place in range(len(port_of(name).FAULTS))]


@pytest.mark.parametrize("name", PORTS)
def test_a_correct_port_is_clean(name: str) -> None:
    made = port_of(name)
    reference = made.reference()
    report = qtrace.trace(reference, made.port(reference), made.inputs())
    assert report.outcome is Outcome.CLEAN, [finding.module for finding in report.findings]
    assert report.findings == ()


@pytest.mark.parametrize(
    ("name", "place"), FAULTS, ids=[f"{name}-{port_of(name).FAULTS[place][0]}-{place}" for name, place in FAULTS]
)
def test_the_module_with_a_changed_row_is_named(name: str, place: int) -> None:
    made = port_of(name)
    path, said, change = made.FAULTS[place]
    reference = made.reference()
    candidate = copy.deepcopy(made.port(reference))
    with torch.no_grad():
        change(candidate)
    report = qtrace.trace(reference, candidate, made.inputs())
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings][:1] == [path], said
