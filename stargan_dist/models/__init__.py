"""Trained models as files: model folders, checkpoints of runs, the authors' checkpoints."""
