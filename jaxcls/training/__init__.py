"""The training loop with its log, meter, trackers, stopping and watchdog."""
