"""The user's config: knobs, their rules, and the files and command lines that set them.

A config file starts from `base`. `loading` resolves a file with its overrides. `calls`
parses texts such as ``"flip | randaugment(2, 10)"``. `durations` parses texts such as ``"90
epochs"``.
"""

from jaxcls.config.loading import base

__all__ = ["base"]
