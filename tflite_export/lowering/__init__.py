"""From a trained network's description to its integer graph."""
