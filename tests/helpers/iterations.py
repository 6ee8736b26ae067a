"""One training iteration, as `Trainer.train` runs it."""


def iterate(state, engine, micro_batches, step):
    """Set learning rates, iterate, update averages. Returns the terms of the objective."""
    state.set_learning_rates(step)
    terms = state.objective.iterate(engine, micro_batches, step)
    state.update_averages(engine, step)
    return terms
