"""How tests of properties draw their examples: the same ones in every run."""

import hypothesis

from jaxcls.errors import InputError

examples = hypothesis.settings(
    derandomize=True, database=None, deadline=None, max_examples=150
)
few_examples = hypothesis.settings(examples, max_examples=30)  # Each takes long.


def refusal(function, *arguments):
    """The message with which a function refuses its arguments; "" if it takes them."""
    try:
        function(*arguments)
    except InputError as error:
        return str(error)
    return ""
