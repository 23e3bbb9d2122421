"""The command line ``k2``: one file per noun group. The only place that configures logging."""

from k2core.cli.root import main

__all__ = ["main"]
