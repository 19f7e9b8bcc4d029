"""A sweep over a Ray cluster that loses a node: every unit is done, and none twice."""

import contextlib
import io
import json
import pathlib
import threading
import time

import pytest

from research import on_ray, sweep
from research.errors import ConfigError
from tests.research import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("text, found", [("CPU=1", {"CPU": 1}), ("CPU=1,GPU=0.5", {"CPU": 1, "GPU": 0.5}),
                                         (" TPU = 4 ,CPU=2".replace(" = ", "="), {"TPU": 4, "CPU": 2})])
def test_resources_are_names_and_numbers(text, found):
  assert on_ray.resources_of(text) == found


@pytest.mark.parametrize("text", ["", "CPU", "CPU=", "CPU=two", "=1", "CPU=-1", "CPU=nan", "CPU=inf", ","])
def test_other_resources_are_one_line(text):
  with pytest.raises(ConfigError, match="must be NAME=NUMBER") as refused:
    on_ray.resources_of(text)
  assert "\n" not in str(refused.value)


def test_processes_of_one_core_run_one_thread():
  assert "--xla_cpu_multi_thread_eigen=false" in on_ray._environment({"CPU": 1.0})["XLA_FLAGS"]
  assert "XLA_FLAGS" not in on_ray._environment({"CPU": 4.0}) and "XLA_FLAGS" not in on_ray._environment({"CPU": 1, "GPU": 1})


def _main(*argv):
  said, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
    code = sweep.main([f"--config={toy.FILE}", *map(str, argv)])
  return code, said.getvalue(), errors.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray, at its import and of its sockets
def test_no_cluster_is_one_line(tmp_path):
  pytest.importorskip("ray")
  code, _, errors = _main(f"--workdir={tmp_path}", "--vary=optim.lr=1e-3,2e-3", "--ray=127.0.0.1:1", "--seeds=0:1")
  assert code == 2 and "--ray='127.0.0.1:1': no cluster answers" in errors and errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_node_loses_no_unit(tmp_path, monkeypatch):
  pytest.importorskip("ray")
  from ray.cluster_utils import Cluster
  monkeypatch.setenv("STRATA_CACHE", toy.CACHE)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")
  cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
  doomed = cluster.add_node(num_cpus=1)
  finals = lambda: list(tmp_path.glob("arms/*/seed_*/final.json"))

  def kill():
    while len(finals()) < 6:
      time.sleep(0.2)
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1)

  killer = threading.Thread(target=kill)
  killer.start()
  try:
    code, said, errors = _main(
        f"--workdir={tmp_path}", "--vary=optim.lr=1e-3,3e-3,1e-2", "--seeds=0:8", f"--ray={cluster.address}",
        "--config.model.width=32", "--config.optim.steps=200", "--config.train.log_every=10", "--config.train.eval_every=0",
        "--config.train.save_every=20")
  finally:
    killer.join(timeout=60)
    cluster.shutdown()
  assert code == 0 and not errors and "24/24 units" in said, (code, said, errors)
  assert len(finals()) == 24
  for arm in ("lr-1e-3", "lr-3e-3", "lr-1e-2"):
    units = [json.loads(line) for line in (tmp_path / "arms" / arm / "units.jsonl").read_text().splitlines()]
    assert sorted(u["seeds"][0] for u in units if u["code"] == 0) == list(range(8)), units
