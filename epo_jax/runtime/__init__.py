"""Devices, hosts, files, checkpoints, metrics and progress of a run."""
