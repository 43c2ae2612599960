"""Control, measure and certify how much a network amplifies a perturbation."""
