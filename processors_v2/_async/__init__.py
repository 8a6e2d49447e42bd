"""The asynchronous classes, from which tools/unasync.py makes the synchronous ones."""
