"""Conversations on disk: EPO's ShareGPT files, read, written, sampled and judged."""
