"""TFDS builders that ship with jaxcls; each is prepared on first use."""

from jaxcls.data.datasets.digits import Digits

BUNDLED = {"digits": Digits}
