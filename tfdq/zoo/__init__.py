"""Trained integer files with cards to check them by.

The public names are loaded on first use, so that importing the package is quick.
"""

from tfdq._first_use import loaded_on_first_use

_HOME = {
    "Card": "tfdq.zoo.cards",
    "Entry": "tfdq.zoo.loading",
    "Finding": "tfdq.zoo.checking",
    "check": "tfdq.zoo.checking",
    "load": "tfdq.zoo.loading",
    "read_cards": "tfdq.zoo.cards",
}

__all__ = [*_HOME]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
