"""Isolation for code that a model wrote: the `python` tool and the workspace it works in."""
