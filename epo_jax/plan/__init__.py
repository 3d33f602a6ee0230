"""Plans a run on hardware that is not there: python -m epo_jax.plan."""
