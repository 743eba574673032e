"""Implementations of window attention, all with one signature. `reference` is the plain one the others are tested against."""
