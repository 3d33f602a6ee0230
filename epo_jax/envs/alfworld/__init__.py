"""ALFWorld: household tasks as text games, played by an engine of our own."""
