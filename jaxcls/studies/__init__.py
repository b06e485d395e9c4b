"""Several runs, and what they say together: seeds, statistics, reproduction."""
