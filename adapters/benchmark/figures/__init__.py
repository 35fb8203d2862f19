"""Figures that are no grid of cells: speed, unknown tasks, general prompts, start positions, learning curves."""
