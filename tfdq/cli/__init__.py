"""The command ``tfdq``."""

from tfdq.cli.entry import main

__all__ = ["main"]
