"""Experiments from data set to table: training, attacking, exporting, recording."""
