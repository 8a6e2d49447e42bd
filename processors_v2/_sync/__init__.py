"""The synchronous classes."""
