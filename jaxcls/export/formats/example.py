"""The source of example.py, which runs an export without jaxcls."""

from collections.abc import Mapping, Sequence
from typing import Any

# {"op": name of a host op in data.eval_ops, argument: value}.
Step = Mapping[str, Any]

_LINKS = {
    "softmax": "np.exp(x - x.max()) / np.exp(x - x.max()).sum()",
    "sigmoid": "1 / (1 + np.exp(-x))",
}
_OPENCV = {"linear": "LINEAR", "cubic": "CUBIC", "area": "AREA"}
_TEMPLATE = '''\
"""What is in images: python example.py IMAGE...; needs {needs}."""

import json
import pathlib
import sys

{imports}

HERE = pathlib.Path(__file__).resolve().parent
LABELS = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["labels"]
{model}


def pixels(path):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
{steps}
    return np.asarray(image).reshape({shape})


for path in sys.argv[1:]:
    x = logits(pixels(path)[None])[0]
    probabilities = {link}
    best = int(probabilities.argmax())
    print(f"{{path}}: {{LABELS[best]}} {{probabilities[best]:.4f}}")
'''


def source(
    run: tuple[str, str], steps: Sequence[Step], shape: tuple[int, int, int], link: str
) -> str:
    """Returns the text of example.py.

    run: (imports, code that defines logits(images [1, H, W, C] uint8)). steps: the host ops
    from a file to its pixels. shape: (H, W, C). link: "softmax" or "sigmoid".
    """
    imports, model = run
    lines = [line for step in steps for line in _lines(step)]
    imports += "\nimport numpy as np\nfrom PIL import Image, ImageOps"
    if any("cv2" in line for line in lines):
        imports += "\nimport cv2"
    ordered = sorted(imports.splitlines(), key=lambda line: (line.startswith("from"), line))
    packages = dict.fromkeys(line.split()[1].partition(".")[0] for line in ordered)
    return _TEMPLATE.format(
        needs=", ".join("Pillow" if name == "PIL" else name for name in packages),
        imports="\n".join(ordered),
        model=model,
        steps="\n".join(f"    {line}" for line in lines),
        shape=", ".join(map(str, shape)),
        link=_LINKS[link],
    )


def _lines(step: Step) -> list[str]:
    """Returns the code of a host op: ``image`` -> ``image``, of Pillow."""
    match step:
        case {"op": "decode", "channels": channels}:
            return ['image = image.convert("L")'] if channels == 1 else []
        case {"op": "resize", "height": height, "width": width}:
            return [_scaled(f"({width}, {height})", step["filter"])]
        case {"op": "resize_short", "size": side}:
            sizes = f"max({side}, round(n * ({side} / min(image.size))))"
            return [
                f"size = tuple({sizes} for n in image.size)",
                _scaled("size", step["filter"]),
            ]
        case {"op": "center_crop", "height": height, "width": width}:
            return [
                f"sides = zip(image.size, ({width}, {height}))",
                "left, top = (round((n - m) / 2) if n > m else -((m - n) // 2)"
                " for n, m in sides)",
                f"image = image.crop((left, top, left + {width}, top + {height}))",
            ]
    raise KeyError(step["op"])


def _scaled(size: str, name: str) -> str:
    if name not in _OPENCV:
        return f"image = image.resize({size}, Image.Resampling.{name.upper()})"
    how = f"interpolation=cv2.INTER_{_OPENCV[name]}"
    return f"image = Image.fromarray(cv2.resize(np.asarray(image), {size}, {how}))"
