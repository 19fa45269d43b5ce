"""Sources of models and inputs: specs, files, wrappers. Imports nothing by itself; see each module."""
