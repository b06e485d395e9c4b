"""The version of jaxcls, and the number of what it computes."""

__version__ = "0.1.0"
# It rises with every change of the code that alters a bit of some run. A run keeps it.
NUMERICS = 0
# {number: the last commit that computes it}.
COMMITS: dict[int, str] = {}


def home_of(number: int) -> str:
    """Returns where the code of a number of `NUMERICS` is, for messages."""
    commit = COMMITS.get(number)
    return f"commit {commit} of jaxcls" if commit else "another jaxcls; upgrade this one"
