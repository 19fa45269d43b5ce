"""Runs two models in lockstep: aligns their modules, observes calls as events, compares and forces tensors."""
