"""Ratios measured side by side in one process; each prints what it measured."""
