"""Bargaining between two seats, each with a strategist of its own: to be named in a config by this module's name."""

from epo_jax.envs.bargain.domain import domain

DOMAIN = domain('seat', 2)
