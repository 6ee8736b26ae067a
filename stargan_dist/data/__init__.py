"""Samples: which, in which order, and how they are read."""
