"""The loop that trains, and what it tells: log, meter, trackers, stopping, watchdog."""
