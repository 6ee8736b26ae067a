from itertools import product

import numpy as np

from stargan_dist.evaluation.tasks import (
    LATENT,
    OUTPUTS,
    REAL,
    REFERENCE,
    Task,
    draw_latents,
    draw_references,
    tasks,
)


def test_tasks_are_all_ordered_pairs_by_both_guides_and_a_real_task_per_domain():
    found = tasks(3)
    pairs = [(a, b) for a, b in product(range(3), repeat=2) if a != b]
    translations = {Task(guide, *pair) for guide in (LATENT, REFERENCE) for pair in pairs}
    assert set(found) == translations | {Task(REAL, y, y) for y in range(3)}
    assert len(found) == len(set(found)) == 15
    assert [task.target for task in found] == sorted(task.target for task in found)


def test_draws_are_functions_of_seed_task_and_source():
    task = Task(LATENT, 0, 1)
    z = draw_latents(task, 5, 16, seed=0)
    assert z.shape == (OUTPUTS, 16)
    assert np.array_equal(z, draw_latents(task, 5, 16, seed=0))
    different = [
        draw_latents(Task(LATENT, 1, 0), 5, 16, 0),
        draw_latents(task, 6, 16, 0),
        draw_latents(task, 5, 16, 1),
    ]
    assert not any(np.array_equal(z, other) for other in different)
    assert len(np.unique(z)) == z.size


def test_references_are_drawn_evenly_from_the_domain():
    drawn = [draw_references(Task(REFERENCE, 0, 1), source, 7, 0) for source in range(100)]
    counts = np.bincount(np.concatenate(drawn), minlength=7)
    assert len(counts) == 7
    assert counts.min() > 100
