"""How tests of properties draw their examples: the same ones in every run."""

import hypothesis

examples = hypothesis.settings(
    derandomize=True, database=None, deadline=None, max_examples=150
)
few_examples = hypothesis.settings(examples, max_examples=30)  # Each writes files.
