"""The source of example.py, which runs an export without jaxcls.

It holds the text of `stills`, so that it reads a file as `predict` does.
"""

import ast
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls.data import stills

# {"op": name of a host op in data.eval_ops, argument: value}.
Step = Mapping[str, Any]

_LINKS = {
    "softmax": "np.exp(x - x.max()) / np.exp(x - x.max()).sum()",
    "sigmoid": "1 / (1 + np.exp(-x))",
}
_OPENCV = {"linear": "LINEAR", "cubic": "CUBIC", "area": "AREA"}
# As `clean.pixels` does.
_GREY = """\
        if image.mode == "RGB" and turn_of(image) is None:
            image.draft("L", image.size)  # The luma of a JPEG.
"""
_TEMPLATE = '''\
"""What is in images: python example.py IMAGE...; needs {needs}."""

{standard}

{imports}

HERE = pathlib.Path(__file__).resolve().parent
LABELS = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["labels"]
{model}


{stills}


def pixels(path):
    data = silent(pathlib.Path(path).read_bytes())
    with explained(), opened(data) as image:
{draft}        load(image, data)
        image = to_rgb(image).convert("RGB")
{steps}
    return np.asarray(image).reshape({shape})


status = 0
for path in sys.argv[1:]:
    try:
        x = logits(pixels(path)[None])[0]
    except DecodeError as error:
        print(f"error: {{path}}: {{error}}", file=sys.stderr)
        status = 2
        continue
    probabilities = {link}
    best = int(probabilities.argmax())
    print(f"{{path}}: {{LABELS[best]}} {{probabilities[best]:.4f}}")
sys.exit(status)
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
    needed, reading = _stills()
    if any("cv2" in line for line in lines):
        imports += "\nimport cv2"
    every = {*imports.splitlines(), *needed, "import json", "import pathlib", "import sys"}
    ordered = sorted(every, key=lambda line: (line.startswith("from"), line))
    root = {line: line.split()[1].partition(".")[0] for line in ordered}
    standard = [line for line in ordered if root[line] in sys.stdlib_module_names]
    others = [line for line in ordered if line not in standard]
    packages = dict.fromkeys(root[line] for line in others)
    return _TEMPLATE.format(
        needs=", ".join("Pillow" if name == "PIL" else name for name in packages),
        standard="\n".join(standard),
        imports="\n".join(others),
        model=model,
        stills=reading,
        draft=_GREY if shape[2] == 1 else "",
        steps="\n".join(f"    {line}" for line in lines),
        shape=", ".join(map(str, shape)),
        link=_LINKS[link],
    )


def _stills() -> tuple[list[str], str]:
    """Returns the imports of `stills`, and its text below them."""
    text = inspect.getsource(stills)
    imports = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    below = text.splitlines()[imports[-1].end_lineno :]
    return [ast.unparse(node) for node in imports], "\n".join(below).strip()


def _lines(step: Step) -> list[str]:
    """Returns the code of a host op: ``image`` -> ``image``, of Pillow."""
    match step:
        case {"op": "decode", "channels": channels}:
            return ['image = image.convert("L")'] if channels == 1 else []
        case {"op": "resize", "height": height, "width": width}:
            return [_scaled(f"({width}, {height})", step["filter"])]
        case {"op": "resize_short", "size": side}:
            new = f"round(n * ({side} / min(image.size)))"
            if step["rounding"] == "truncate":
                new = f"n * {side} // min(image.size)"
            sizes = f"max({side}, {new})"
            return [
                f"size = tuple({sizes} for n in image.size)",
                _scaled("size", step["filter"]),
            ]
        case {"op": "resize_long", "height": height, "width": width}:
            return [
                "w, h = image.size",
                f"is_wide = w * {height} > h * {width}",
                f"wide = {width}, max(1, round(h / w * {width}))",
                f"high = max(1, round(w / h * {height})), {height}",
                _scaled("wide if is_wide else high", step["filter"]),
            ]
        case {"op": "pad", "height": height, "width": width, "fill": fill}:
            return [
                f"margins = {width} - image.width, {height} - image.height",
                f"canvas = Image.new(image.mode, ({width}, {height}), {_filled(fill)})",
                "canvas.paste(image, tuple(round(n / 2) for n in margins))",
                "image = canvas",
            ]
        case {"op": "letterbox"}:
            parts = {**step, "op": "resize_long"}, {**step, "op": "pad"}
            return [line for part in parts for line in _lines(part)]
        case {"op": "center_crop", "height": height, "width": width}:
            return [
                f"sides = zip(image.size, ({width}, {height}))",
                "left, top = (round((n - m) / 2) if n > m else -((m - n) // 2)"
                " for n, m in sides)",
                f"image = image.crop((left, top, left + {width}, top + {height}))",
            ]
    raise KeyError(step["op"])


def _filled(fill: int | Sequence[int]) -> str:
    """Returns the colour as Pillow takes it for images of one channel and of three."""
    values = [fill] if isinstance(fill, int) else [*fill]
    if len(values) == 3:
        return str(tuple(values))
    return f'{values[0]} if image.mode == "L" else ({values[0]},) * 3'


def _scaled(size: str, name: str) -> str:
    if name not in _OPENCV:
        return f"image = image.resize({size}, Image.Resampling.{name.upper()})"
    how = f"interpolation=cv2.INTER_{_OPENCV[name]}"
    return f"image = Image.fromarray(cv2.resize(np.asarray(image), {size}, {how}))"
