"""Pure functions that train: one step, its gradients, losses, metrics and optimizers.

Nothing here reads a config, a file or a clock.
"""
