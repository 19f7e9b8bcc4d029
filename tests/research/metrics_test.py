"""metrics.jsonl: the same text for the same bits, whole after a kill, no step twice and none missing."""

import json
import math
import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from research import loggers
from research import metrics


def _record(step):
  return {"step": step, "loss": 1.0 / (step + 3), "wall_s": 0.1 * step, "tokens_per_s": 5.0}


def _write(path, resume_step, first, last):
  lines = metrics.MetricsFile(path, resume_step)
  if resume_step is None:
    lines.write({"config_id": "toy"})
  for step in range(first, last + 1):
    lines.write(_record(step))
  lines.sync()
  lines.close()


def test_a_file_cut_at_any_byte_and_resumed_is_the_unbroken_file(tmp_path):
  _write(tmp_path / "whole", None, 1, 8)
  whole = (tmp_path / "whole").read_bytes()
  for cut in range(whole.index(b'{"step":4'), len(whole) + 1, 3):
    (tmp_path / "cut").write_bytes(whole[:cut])
    _write(tmp_path / "cut", 3, 4, 8)  # the checkpoint was at step 3
    assert (tmp_path / "cut").read_bytes() == whole, cut


def test_a_run_that_starts_afresh_empties_the_file(tmp_path):
  _write(tmp_path / "m", None, 1, 3)
  _write(tmp_path / "m", None, 1, 2)
  assert [r.get("step") for r in metrics.read(tmp_path / "m")] == [None, 1, 2]


def test_bytes_of_a_lost_block_behind_the_last_line_are_dropped(tmp_path):
  _write(tmp_path / "m", None, 1, 2)
  with open(tmp_path / "m", "ab") as file:
    file.write(b"\0" * 100 + b"\n" + b"\0" * 50)
  assert [r.get("step") for r in metrics.read(tmp_path / "m")] == [None, 1, 2]


@pytest.mark.parametrize("bad", [b"{'step': 1}", b"[1]", b"[" * 100_000, b""])
def test_a_bad_line_in_the_middle_is_refused_with_its_number(tmp_path, bad):
  (tmp_path / "m").write_bytes(b'{"step":1}\n' + bad + b'\n{"step":2}\n')
  with pytest.raises(ValueError, match="line 2 is not a JSON object"):
    metrics.MetricsFile(tmp_path / "m", 2)


def test_every_bit_of_a_number_comes_back_and_every_line_is_strict_json(tmp_path):
  f32 = np.float32(0.1)
  record = {"step": jnp.int32(1), "pi": math.pi, "f32": f32, "bf16": jnp.bfloat16(0.3), "nan": jnp.float32(np.nan),
            "inf": [np.inf, -np.inf], "zero": -0.0, "ok": True, "none": None, "vector": np.arange(3), "name": "läuft"}
  lines = metrics.MetricsFile(tmp_path / "m", None)
  lines.write(record)
  lines.close()
  text = (tmp_path / "m").read_text("ascii")
  json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  [back] = metrics.read(tmp_path / "m")
  assert list(back) == list(record)
  assert back["pi"] == math.pi and np.float32(back["f32"]) == f32 and back["bf16"] == float(jnp.bfloat16(0.3))
  assert math.isnan(back["nan"]) and back["inf"] == [math.inf, -math.inf]
  assert math.copysign(1, back["zero"]) == -1
  assert (back["step"], back["ok"], back["none"], back["vector"], back["name"]) == (1, True, None, [0, 1, 2], "läuft")


def test_lines_of_equal_runs_are_equal_without_the_clock(tmp_path):
  for name, speed in (("a", 1.0), ("b", 2.0)):
    lines = metrics.MetricsFile(tmp_path / name, None)
    lines.write({"step": 1, "loss": 0.5, "wall_s": speed, "tokens_per_s": speed, "time": speed})
    lines.close()
  assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
  assert metrics.deterministic_lines(tmp_path / "a") == metrics.deterministic_lines(tmp_path / "b") == [
      '{"step":1,"loss":0.5}']


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
  lines = metrics.MetricsFile(tmp_path / "m", None)
  for step in range(3):
    lines.write(_record(step))
    assert len(metrics.read(tmp_path / "m")) == step + 1
  lines.close()


def test_a_full_disk_costs_one_error_line_and_no_record(tmp_path, caplog):
  lines = metrics.MetricsFile(tmp_path / "m", None)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
  try:
    for step in range(5):
      lines.write(_record(step))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(caplog.records) == 1 and os.path.getsize(tmp_path / "m") == 100
  lines.write(_record(5))
  lines.close()
  assert [r["step"] for r in metrics.read(tmp_path / "m")] == list(range(6))


def test_dashboards_get_the_finite_scalars():
  record = {"step": 3, "loss": jnp.float32(2.0), "nan": math.nan, "ok": True, "name": "x", "v": np.ones(2), "n": 7}
  assert loggers.scalars(record) == {"loss": 2.0, "n": 7.0}
  assert loggers.scalars({"config_id": 1}) == {}


@pytest.mark.parametrize("log, extra", [("tensorboard", "logs"), ("wandb", "wandb")])
def test_a_missing_dashboard_names_its_extra(tmp_path, monkeypatch, log, extra):
  monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
  args = {"tensorboard": (tmp_path,), "wandb": (tmp_path, "run", {})}[log]
  with pytest.raises(ValueError, match=rf"--log={log} needs .*pip install -e '\.\[{extra}\]'"):
    getattr(loggers, log)(*args)
