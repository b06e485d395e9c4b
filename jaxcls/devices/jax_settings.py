"""JAX's settings that decide bits: those that a run fixes, and those that it records.

They come from environment variables (JAX_ENABLE_X64), from a config's file, or from a
program that imports jaxcls.
"""

from typing import Any

import jax

from jaxcls.errors import InputError

# What a run computes follows from these, so another value is refused.
FIXED: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_threefry_partitionable": True,
}
# What these change is a way to compute: another value may change bits, and is recorded.
RECORDED: dict[str, Any] = {
    "eager_constant_folding": False,
    "jax_allow_f16_reductions": True,
    "jax_compiler_enable_remat_pass": True,
    "jax_custom_vjp3": False,
    "jax_disable_most_optimizations": False,
    "jax_enable_pgle": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_numpy_dtype_promotion": "standard",
    "jax_optimization_level": "UNKNOWN",
    "jax_remat3": False,
    "jax_scan3": False,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_use_direct_linearize": True,
    "jax_use_magma": "auto",
    "jax_use_shardy_partitioner": True,
}


def check() -> None:
    """Raises `InputError` if a setting that a run fixes has another value."""
    for name, value in FIXED.items():
        now = _now(name, value)
        if now == value:
            continue
        instead = f"set it to {value!r}, or unset {name.upper()}"
        if name == "jax_default_matmul_precision":
            instead = f"unset {name.upper()}, and set config.model.matmul_precision"
        raise InputError(f"JAX's {name}={now!r} changes what a run computes; {instead}")


def others() -> dict[str, Any]:
    """Returns the recorded settings that are not at JAX's default, by name."""
    found = {name: _now(name, value) for name, value in RECORDED.items()}
    return {name: now for name, now in found.items() if now != RECORDED[name]}


def _now(name: str, default: Any) -> Any:
    """Returns the value of a setting; a JAX that does not have it gives the default."""
    value = jax.config.values.get(name, default)
    return getattr(value, "value", value)
