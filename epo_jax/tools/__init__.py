"""Commands around the environments: replaying, playing by hand, experts, optima."""
