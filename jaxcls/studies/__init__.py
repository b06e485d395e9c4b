"""Studies: several runs over seeds, their statistics, and reproduction of a run."""
