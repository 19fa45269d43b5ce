"""Coverage by toolkit: what of a model is aligned and compared after each toolkit has wrapped it, and is it right."""
