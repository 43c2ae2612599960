"""Graphs and files at work on a board: LiteRT, the NumPy reference, time and memory."""
