"""Correct ports of small models, as other authors would write them, with faults to put into them."""
