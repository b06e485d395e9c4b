"""Folders of runs that never were, with what their files would say."""

import json

from jaxcls.runs.workdir import Workdir


def write(path, records=(), *, seed=0, reason="done", facts=None, **values):
    """The `Workdir` of a run of these records and config values, ``data__test="test"``."""
    path.mkdir(parents=True, exist_ok=True)
    known = {
        "name": "made",
        "version": "1.0.0",
        "fingerprint": "f1",
        "num_classes": 2,
        "class_names": ["a", "b"],
    }
    known |= {"splits": {"test": 9}, "image_shape": [8, 8, 1], **(facts or {})}
    config = {"seed": seed, "data.test": "test", "data.eval": "val"}
    config |= {key.replace("__", "."): value for key, value in values.items()}
    saved = {"format": 1, "config": config, "implied": {"facts": known}}
    (path / "config.json").write_text(json.dumps(saved))
    starts = [{"reason": "killed"}, {"reason": reason}]
    (path / "manifest.json").write_text(json.dumps({"format": 1, "starts": starts}))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)
    return Workdir(path)


def record_bytes(folder):
    """What a repeat of a run must write to the byte."""
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]


def scored(top1, step=4):
    """The records of a run whose only evaluation is at its end."""
    values = {"loss": 1 - top1, "top1": top1}
    return [
        {"step": step, "kind": "eval", "split": "val", "n": 9, **values},
        {"step": step, "kind": "final", "at": "best", "best_step": step, "split": "test"}
        | {"n": 9, **values},
    ]
