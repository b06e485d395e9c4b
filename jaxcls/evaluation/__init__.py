"""Scores every example of a split once, and computes the figures of a model.

`scoring` computes metrics. `assess` adds calibration, confidence intervals, subgroups, and
robustness to corruptions and attacks.
"""
