"""Contents of a run folder: checkpoints and evaluation results."""
