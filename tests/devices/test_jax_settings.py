"""Settings of JAX that change bits are refused, or recorded and said."""

import jax
import pytest

from jaxcls import experiment
from jaxcls.devices import jax_settings
from jaxcls.errors import InputError
from jaxcls.runs import provenance


@pytest.fixture
def setting():
    """``setting(name, value)`` sets one of JAX's settings for the test."""
    before = {}

    def change(name, value):
        before.setdefault(name, jax.config.values[name])
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("jax_enable_x64", True, "set it to False, or unset JAX_ENABLE_X64"),
        ("jax_disable_jit", True, "set it to False, or unset JAX_DISABLE_JIT"),
        ("jax_random_seed_offset", 7, "set it to 0, or unset JAX_RANDOM_SEED_OFFSET"),
        ("jax_threefry_partitionable", False, "set it to True"),
        ("jax_default_prng_impl", "rbg", "set it to 'threefry2x32'"),
        ("jax_default_matmul_precision", "bfloat16", "set config.model.matmul_precision"),
    ],
)
def test_a_setting_that_changes_what_is_computed_is_refused(
    tiny, setting, name, value, message
):
    setting(name, value)
    with pytest.raises(InputError, match=f"JAX's {name}={value!r} changes .*{message}"):
        experiment.build(tiny())


def test_what_is_fixed_is_jaxs_own_default(tiny):
    experiment.build(tiny())
    assert jax_settings.others() == {}


def test_other_settings_are_recorded_and_said(setting):
    before = provenance.of_this_start() | {"devices": ["cpu"], "hosts": 1}
    assert before["jax_settings"] == {}
    setting("jax_use_magma", "off")
    setting("jax_numpy_dtype_promotion", "strict")
    after = provenance.of_this_start() | {"devices": ["cpu"], "hosts": 1}
    expected = {"jax_numpy_dtype_promotion": "strict", "jax_use_magma": "off"}
    assert after["jax_settings"] == expected
    (said,) = provenance.changes(before, after).values()
    assert said == (
        "JAX's settings {} -> "
        '{"jax_numpy_dtype_promotion": "strict", "jax_use_magma": "off"}'
    )
    # A start of an earlier version recorded none.
    del before["jax_settings"]
    assert list(provenance.changes(before, after)) == ["JAX's settings"]
