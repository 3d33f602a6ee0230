"""Bargaining over three kinds of items, in array code: the fast testbed."""
