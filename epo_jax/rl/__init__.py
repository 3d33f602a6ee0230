"""Credit assignment and losses."""
