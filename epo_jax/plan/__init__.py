"""Estimates of the memory and time of a run on TPU slices, without the hardware: python -m epo_jax.plan."""
