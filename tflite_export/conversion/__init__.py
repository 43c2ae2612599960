"""From a trained network to a file that is proven to compute it."""
