"""What tests ask of a model and a split."""

from jaxcls.evaluation import examples, passes, scoring


def score(exp, weights, split, key, batch_size=0):
    """(n, {metric: mean}), as the final record of a run has them."""
    columns = scoring.score_each(exp, weights, split, key, batch_size)
    return scoring.means(columns, exp.recipe.split_metrics)


def predictions(exp, variables, split, batch_size=8):
    """The logits and labels of all examples, in their order; variables: of one model."""
    given = examples.of_run(exp, split)
    return passes.predictions(passes.Subject(exp, variables, given, batch_size))
