"""The machines of a run: devices and their mesh, hosts, memory, described TPU slices."""
