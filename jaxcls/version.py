"""The version of jaxcls, which runs, studies and exports record."""

__version__ = "0.1.0"
