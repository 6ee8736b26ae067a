"""Training and evaluation samples: their order, their labels, and how they are read."""
