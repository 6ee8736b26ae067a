"""What is trained: networks and losses combined."""
