"""The command ``tfdq``."""

from tfdq.cli.app import main

__all__ = ["main"]
