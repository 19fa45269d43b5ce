"""Where models and inputs come from: specs, files, wrappers. Imports nothing by itself; see each module."""
