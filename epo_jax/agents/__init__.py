"""Agents, which read messages and reply: local models, functions on the host, endpoints and scripts."""
