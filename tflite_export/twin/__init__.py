"""The differentiable copy of an integer graph, which attacks and parity checks run on."""
