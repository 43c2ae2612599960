"""The whole trip on real images, in one command: its run, its table, its pictures."""
