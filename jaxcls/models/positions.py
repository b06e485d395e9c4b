"""Tables of positions on a grid of patches: fixed embeddings, and rotary ones.

NumPy computes them when a model is traced.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

PERIOD = 100.0  # The longest of DINOv3's; a grid is 2 wide.


def sincos(height: int, width: int, features: int) -> np.ndarray:
    """Returns fixed positions [1, height * width, features]: sines and cosines of x and y.

    They are float32. The frequencies go from 1 to 1 / 10000, as in MoCo v3 and big_vision.
    """
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1)
    omega = 10_000.0 ** -np.linspace(0, 1, features // 4)
    parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


@functools.lru_cache
def rope(height: int, width: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sines and cosines of a rotary embedding, each [height * width, F / 2].

    They are float32. The centres of the patches are from -1 to 1 along each side, of any
    length. The first half of the angles is of y, the second of x; periods rise
    geometrically from 1 (DINOv3, Siméoni et al., arXiv:2508.10104). features: of one head,
    a multiple of 4.
    """
    sides = [(2 * np.arange(n) + 1) / n - 1 for n in (height, width)]
    centres = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = PERIOD ** (np.arange(features // 4) / (features // 4))
    angles = (2 * np.pi * centres / periods).reshape(height * width, features // 2)
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def rotate(x: jax.Array, height: int, width: int) -> jax.Array:
    """Rotates queries or keys x [B, N, heads, F] by `rope`; the rotation is float32.

    The last height * width tokens are the patches; those before them stay.
    """
    sin, cos = (each[None, :, None] for each in rope(height, width, x.shape[-1]))
    first = x.shape[1] - height * width
    left, right = jnp.split(x[:, first:].astype(jnp.float32), 2, axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin]
    turned_back = jnp.concatenate(turned, axis=-1).astype(x.dtype)
    return jnp.concatenate([x[:, :first], turned_back], axis=1)
