"""Outcomes and process rewards."""
