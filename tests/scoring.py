"""What tests ask of a model and a split."""

import numpy as np

from jaxcls.evaluation import passes, scoring
from jaxcls.evaluation.predictions import Predictions


def score(exp, weights, split, key, batch_size=0):
    """(n, {metric: mean}), as the final record of a run has them."""
    return scoring.means(scoring.score_each(exp, weights, split, key, batch_size))


def predictions(exp, variables, split, key, batch_size=0):
    """The logits and labels of all examples, in their order; variables: of one model."""
    classes = np.arange(exp.selection.num_classes)
    scorer = {"": passes.of_model(exp, variables, classes)}
    batches = exp.eval_batches(split, key, batch_size)
    n = exp.selection.count(split, key)
    kept, labels = passes.over(n, batches, classes, scorer, exp.mesh)
    return Predictions(kept[""]["logits"], labels)
