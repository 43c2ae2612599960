"""What can be set, each field defined once: its meaning, its range and its default."""
