"""The same gradients take the same steps here and in torch's and timm's optimizers.

Needs what test_parity.py needs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.learning.optimizers import OPTIMIZERS, clip, decay_scales, decay_weights
from tests.stepping import at_rate

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

RNG = np.random.default_rng(0)
START = {
    "kernel": RNG.standard_normal((3, 3, 4, 8)).astype(np.float32),
    "bias": RNG.standard_normal(8).astype(np.float32),
}
GRADS = [
    {name: RNG.standard_normal(x.shape).astype(np.float32) for name, x in START.items()}
    for _ in range(20)
]


def rates(peak):
    return [peak * (1 - t / 40) for t in range(len(GRADS))]


def ours(name, peak, decay, norm=0.0, **options):
    """The parameters after 20 steps in float32; what ends in kernel decays."""
    decayed = decay_weights(decay, decay_scales("kernel$", {}))
    made = clip(OPTIMIZERS[name](decayed, **options), norm=norm)
    optimizer = optax.chain(made, at_rate())
    params = jax.tree.map(jnp.asarray, START)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads, lr):
        updates, state = optimizer.update(grads, state, params, lr=lr)
        return jax.tree.map(jnp.add, params, updates), state

    for rate, grads in zip(rates(peak), GRADS, strict=True):
        params, state = step(params, state, grads, jnp.float32(rate))
    return params


def theirs(optimizer, peak, decay, dtype=torch.float64, **options):
    """The same by a class of torch's or timm's, with parameters of `dtype`."""
    params = {
        name: torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for name, x in START.items()
    }
    groups = [
        {"params": [params["kernel"]], "weight_decay": decay},
        {"params": [params["bias"]], "weight_decay": 0.0},
    ]
    made = optimizer(groups, lr=peak, **options)
    for rate, grads in zip(rates(peak), GRADS, strict=True):
        for group in made.param_groups:
            group["lr"] = rate
        for name, param in params.items():
            param.grad = torch.tensor(grads[name], dtype=dtype)
        made.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def check(got, expected):
    for name, start in START.items():
        assert np.abs(expected[name] - start).max() > 0.02
        # Of the largest: what is near 0 has crossed it, and its bits with it.
        atol = 1e-6 * np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=atol)


@pytest.mark.parametrize(
    ("name", "options", "reference", "given"),
    [
        ("sgd", {"nesterov": False}, "SGD", {"momentum": 0.9}),
        ("sgd", {}, "SGD", {"momentum": 0.9, "nesterov": True}),
        ("sgd", {"momentum": 0.0}, "SGD", {}),
        ("adam", {}, "Adam", {}),
        ("adam", {"b2": 0.95, "eps": 1e-3}, "Adam", {"betas": (0.9, 0.95), "eps": 1e-3}),
        ("adamw", {}, "AdamW", {}),
        ("rmsprop", {}, "RMSprop", {}),
        ("rmsprop", {"momentum": 0.9, "alpha": 0.9}, "RMSprop", None),
    ],
)
def test_twenty_steps_are_torchs(name, options, reference, given):
    given = options if given is None else given
    check(
        ours(name, 0.01, 0.1, **options),
        theirs(getattr(torch.optim, reference), 0.01, 0.1, **given),
    )


@pytest.mark.parametrize(
    ("name", "options", "reference", "given"),
    [
        ("lion", {}, "Lion", {}),
        # Where nothing decays, timm's takes Adam's steps, and so does ours.
        ("lamb", {"norm": 1.0}, "Lamb", {}),
        ("lamb", {"norm": 1.0, "eps": 1e-2}, "Lamb", {"eps": 1e-2}),
        ("lamb", {"adapt_on": ""}, "Lamb", {"max_grad_norm": None, "always_adapt": True}),
        ("rmsprop", {"tensorflow": True, "alpha": 0.9, "eps": 1e-3}, "RMSpropTF", None),
        (
            "rmsprop",
            {"tensorflow": True, "decoupled": True, "momentum": 0.9},
            "RMSpropTF",
            {"alpha": 0.99, "eps": 1e-8, "decoupled_decay": True, "momentum": 0.9},
        ),
        (
            "adafactor",
            {"min_dim": 4},
            "AdafactorBigVision",
            {"min_dim_size_to_factor": 4, "momentum_dtype": torch.float32},
        ),
    ],
)
def test_twenty_steps_are_timms(name, options, reference, given, torchvision):
    optimizers = pytest.importorskip("timm.optim")
    if given is None:
        given = {key: value for key, value in options.items() if key != "tensorflow"}
    optimizer = getattr(optimizers, reference)
    check(ours(name, 0.01, 0.1, **options), theirs(optimizer, 0.01, 0.1, **given))


def test_nadamw_is_timms_but_for_the_bias_of_its_momentum(torchvision):
    optimizers = pytest.importorskip("timm.optim")
    got = ours("nadamw", 0.01, 0.1, b1=0.0)
    check(got, theirs(optimizers.NAdamW, 0.01, 0.1, betas=(0.0, 0.999)))
    # The first step: timm's corrects b1 * m + (1 - b1) * g as a whole by 1 - b1, the
    # paper's the m of it by 1 - b1 ** 2.
    grad = {"w": jnp.ones(1)}
    ours_first = OPTIMIZERS["nadamw"](optax.identity(), b1=0.9)
    updates, _ = ours_first.update(grad, ours_first.init(grad))
    np.testing.assert_allclose(updates["w"], -(0.9 * 0.1 / (1 - 0.9**2) + 1), rtol=2e-5)
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.ones(1)
    optimizers.NAdamW([param], lr=1.0, betas=(0.9, 0.999), weight_decay=0.0).step()
    np.testing.assert_allclose(
        param.detach().numpy(), -(0.9 * 0.1 + 0.1) / (1 - 0.9), rtol=2e-5
    )
