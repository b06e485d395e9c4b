"""A trained run becomes a folder that other programs run, in one of `formats`."""
