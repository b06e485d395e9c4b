"""The cache of compiled programs: private, per machine, and without a trace in a run."""

import json
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxcls.config import loading
from jaxcls.errors import InputError
from jaxcls.experiment import compile_cache
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import cells, running
from jaxcls.studies import folder as study_folder

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def restored():
    """JAX's options as they were, after the test."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_even_a_small_program_is_kept_in_a_private_folder_of_this_cpu(
    restored, tmp_path, monkeypatch
):
    folder = tmp_path / "deep" / "cache"
    compile_cache.use(str(folder))
    jax.jit(lambda x: x * 3 + 17)(jnp.ones(5)).block_until_ready()
    (ours,) = folder.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (folder, ours)] == [0o700, 0o700]
    assert any(file.name.endswith("-cache") for file in ours.iterdir())
    # JAX's own key is blind for what XLA compiles for: with other threads, other bits.
    monkeypatch.setenv("NPROC", "17")
    compile_cache.use(str(folder))
    assert len(list(folder.iterdir())) == 2
    assert jax.config.jax_compilation_cache_dir != str(ours)


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_or_own_is_refused(
    restored, mode, tmp_path, monkeypatch
):
    said = rf"compile.cache={tmp_path}: .* may be written by others \(mode {mode:o}\)"
    tmp_path.chmod(mode)
    with pytest.raises(InputError, match=said):
        compile_cache.use(str(tmp_path))
    tmp_path.chmod(0o700)
    compile_cache.use(str(tmp_path))
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match=f"{folder} .* may be written by others"):
        compile_cache.use(str(tmp_path))
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(InputError, match="belongs to another user"):
        compile_cache.use(str(tmp_path))


def test_what_can_be_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be made \(.*; try ~/.cache/jaxcls"):
        compile_cache.use(str(tmp_path / "file"))
    with pytest.raises(InputError, match=re.escape("compile.cache=gs://x is a URL")):
        compile_cache.use("gs://x")


def test_no_run_s_folder_and_no_study_s_plan_names_one(tmp_path):
    """Who hands out a run would else run code with all who evaluate it."""
    folder, given = Workdir(tmp_path), loading.from_flat({"compile.cache": "/mine"})
    folder.adopt(given, {})
    file = tmp_path / "config.json"
    assert "/mine" not in file.read_text()
    saved = json.loads(file.read_text())
    saved["config"]["compile.cache"] = str(tmp_path)
    file.write_text(json.dumps(saved))
    assert folder.config().compile.cache == ""
    assert folder.read()["config"]["compile.cache"] == ""
    study = tmp_path / "study"
    running._adopt(running.Study(given, [cells.Cell("base", {}, ())], [0], study))
    assert study_folder.read_plan(study).config["compile.cache"] == ""


@pytest.mark.slow
def test_a_run_ends_in_the_same_bits_with_none_a_cold_and_a_warm_cache(command, tmp_path):
    cache = tmp_path / "cache"
    kept, records = [], []
    for name, folder in ("none", ""), ("cold", cache), ("warm", cache):
        run = tmp_path / name
        done = command(
            "train", "--config=configs/digits.py", f"--workdir={run}",
            f"--config.compile.cache={folder}", "--config.length=30 steps",
            "--config.model.name=cnn(widths=(4, 8), dropout=0.5, batch_norm=True)",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = ("metrics.jsonl", "digests.jsonl", "config.json")
        records.append([(run / file).read_bytes() for file in files])
        kept.append({file.name for file in cache.rglob("*-cache")})
    assert records[0] == records[1] == records[2]
    assert not kept[0]
    assert len(kept[1]) > 10
    assert kept[2] == kept[1]  # The third start compiled nothing.
    given = f"--workdir={tmp_path / 'warm'}", f"--config.compile.cache={cache}"
    done = command("evaluate", *given)
    assert done.returncode == 0, done.stderr
    (tmp_path / "cache").chmod(0o777)
    refused = command("evaluate", *given)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
