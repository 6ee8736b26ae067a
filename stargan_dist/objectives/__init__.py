"""Recipes, losses and the training objective."""
