"""The HTTP endpoints. People import ``processors_v2.api``."""
