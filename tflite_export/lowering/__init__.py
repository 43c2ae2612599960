"""From a trained network's description to its integer graph."""

# First: where Keras is imported, tfdq registers layers that need the modules of this package.
import tfdq  # noqa: F401
