"""Speed and memory of epo_jax next to its peers and to what the machine can do at best: `benchmarks.run`."""
