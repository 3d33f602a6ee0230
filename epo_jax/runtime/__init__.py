"""What a run stands on: devices, hosts, files, checkpoints, and what it prints."""
