"""The version of jaxcls, and the number of what it computes."""

__version__ = "0.1.0"
# It rises with every change of the code that alters a bit of some run. A run keeps it.
NUMERICS = 3
# {number: the last commit that computes it}.
COMMITS = {
    0: "e9447dff73e016f769a191a6bc9ccc78c42a663f",
    1: "f433cffcea6d9b0aeddd78cec7210de7efbc9ae5",
    2: "9a74ca94e8f5e8536989a6526f34984ddd5d3cb5",
}


def home_of(number: int) -> str:
    """Returns where the code of a number of `NUMERICS` is, for messages."""
    commit = COMMITS.get(number)
    return f"commit {commit} of jaxcls" if commit else "another jaxcls; upgrade this one"
