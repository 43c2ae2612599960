"""The integer graph and what its numbers mean: grids, rounding, options, limits. NumPy only."""
