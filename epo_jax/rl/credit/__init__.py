"""Credit assignment: how much credit every turn gets."""
