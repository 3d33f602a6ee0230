"""Environments: the protocols, batches of text episodes, and SOTOPIA."""
