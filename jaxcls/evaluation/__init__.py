"""Every example of a split is scored once, and its scores become figures.

`scoring` scores a model on a split; `assess` adds calibration, intervals, subgroups and
robustness to corruptions and attacks.
"""
