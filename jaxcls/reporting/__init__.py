"""The parts of a report: plain arguments in, HTML out; nothing here reads a run."""
