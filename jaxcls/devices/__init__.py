"""Where a run computes: devices and their mesh, hosts, memory, described topologies."""
