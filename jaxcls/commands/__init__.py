"""The commands, one module for each verb: it parses flags, calls the library and prints.

Only this package uses `argparse`; a namespace stays in the module of its verb.
"""

import importlib
from collections.abc import Sequence

from jaxcls.errors import DONE, InputError, lookup

# What others call our verbs.
_GUESSES = {"eval": "evaluate", "test": "evaluate", "validate": "evaluate", "fit": "train"}
_GUESSES |= {"resume": "train", "finetune": "train", "infer": "predict", "tune": "study"}
_GUESSES |= {"classify": "predict", "sweep": "study", "convert": "export"}
# In the order of the listing. A verb's module is imported on call, so that help is fast.
VERBS = {
    "train": "Train an image classifier, or go on with a run.",
    "probe": "Fit the head of a model at once, on features that stay.",
    "evaluate": "Score a trained run on every example of a split.",
    "predict": "Classify image files with a trained run.",
    "search": "Find the images of a folder that are nearest to others.",
    "prepare": "Make a dataset of images; or look at a batch of one.",
    "export": "Write a trained run for others: ONNX, StableHLO, TFLite, safetensors.",
    "reproduce": "Make a recorded run again, and compare it bit by bit.",
    "report": "Write one HTML file of how runs and studies went.",
    "study": "Train recipes with several seeds, and say how sure the result is.",
    "completion": "Print a script that completes verbs, flags and config keys.",
}


def main(argv: Sequence[str]) -> int:
    """Calls the verb `argv[0]` with the other arguments; lists the verbs without one.

    Returns the exit status; raises `InputError` for an unknown verb.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxcls VERB ..., where VERB is one of\n")
        for verb, about in VERBS.items():
            print(f"  {verb:<11}{about}")
        print("\njaxcls VERB --help says what each takes.")
        return DONE
    if argv[0] in _GUESSES:
        raise InputError(f"unknown verb {argv[0]!r}; it is {_GUESSES[argv[0]]!r}")
    lookup(VERBS, argv[0], "verb")
    return importlib.import_module(f"{__name__}.{argv[0]}").main(argv[1:])
