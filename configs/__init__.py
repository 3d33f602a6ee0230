"""Experiments: one configuration file each, with presets."""
