"""The evaluation protocol done literally, against ours: same networks, same images, one process.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--size 256] [--sources 2] [--real 6]

The literal way is that of common code for this paper: for each task it writes every output to a
PNG file, passes all of G for each output, compares each of the 45 pairs of outputs by a call of
the `lpips` package, reads the files back through PIL for Inception, computes the features of the
target's real images again, and takes a matrix root with scipy. Weights are drawn at random: they
have no influence on time. Ours is what `stargan_dist.evaluate` runs. Both look at K = 3 domains
with few images, so both spend more of their time on the 2048 × 2048 roots than they would on a
real set: these are left out of all ratios and told apart.

Prints a table of where time goes, then one JSON object.
"""
