"""Where the learning rate of the schedule "steps" falls, and by how much.

Source: Zagoruyko and Komodakis, *Wide Residual Networks*, 2016, section 3.
"""

STEP_FACTOR = 0.2
STEP_PLACES = (0.3, 0.6, 0.8)
