"""Explicit policy optimization in JAX: multi-turn reinforcement learning of a strategist that advises LLM agents."""
