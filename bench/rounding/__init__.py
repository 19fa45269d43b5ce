"""Random models, quantized rightly or with one fault: how large must a fault be against the rounding to be named?

Faults, schemes and the rule for what counts as a fault are made here, apart from all that qtrace knows of quantization.
"""
