"""What a mixer is taken apart into, and what the command says."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.dense import product
from research import find, mixer_times


@pytest.mark.parametrize("name, kernels, maps", [
    ("gla.GLA", 1, 7), ("lru.LRU", 1, 4), ("mlgru.MLGRU", 1, 4), ("mamba.Mamba", 1, 7), ("s4d.S4D", 0, None)])
def test_every_call_of_a_kernel_and_of_a_map_is_found(name, kernels, maps):
  layer = find.find("mixer", name, "mixer")()
  x_BTD = jnp.ones((1, 8, 16))
  found = mixer_times.parts(lambda variables, x: layer.apply(variables, x)[0],
                            jax.jit(layer.init)(jax.random.key(0), x_BTD), x_BTD)
  assert len(found[0]) == kernels
  assert maps is None or len(found[1]) == maps


def test_a_part_gets_what_reaches_it():
  draw = np.random.default_rng(0)
  x, W, V = (draw.standard_normal(shape, np.float32) for shape in ((3, 4), (4, 5), (5, 2)))
  _, ((first, given), (second, reached)) = mixer_times.parts(
      lambda W, V, x: product(jnp.tanh(product(x, W)), V), W, V, x)
  np.testing.assert_allclose(first(*given)[0], x @ W, rtol=1e-5)
  np.testing.assert_allclose(second(*reached)[0], np.tanh(x @ W) @ V, rtol=1e-5)


def test_slopes_are_of_every_floating_array_of_a_call():
  call = lambda x, n, w: (x * n * w,)
  taken = mixer_times.slopes([(call, [jnp.float32(3), jnp.int32(2), jnp.float32(5)])])()
  # Of (x n w)^2.
  np.testing.assert_allclose([taken[0][0], taken[0][2]], [2 * 30 * 10, 2 * 30 * 6])
  assert taken[0][1] is None and mixer_times.slopes([]) is None


def test_the_command_writes_a_row_per_mixer_with_a_kernel(tmp_path, capsys):
  argv = ["hgrn.HGRN", "s4d.S4D", "--tokens=8", "--width=16", "--calls=1", f"--csv={tmp_path / 'times.csv'}"]
  assert mixer_times.main(argv) == 0
  row, = csv.DictReader((tmp_path / "times.csv").read_text().splitlines())
  assert row["mixer"] == "hgrn.HGRN" and all(float(row[head]) > 0 for head in mixer_times.HEAD[1:])
  assert "s4d.S4D" in capsys.readouterr().out


@pytest.mark.parametrize("argv, says", [(["gla.GLB"], "did you mean 'gla.GLA'?"), (["--tokens=0"], "--tokens=0 must be")])
def test_a_slip_is_one_line(argv, says, capsys):
  assert mixer_times.main(argv) == 2
  errors = capsys.readouterr().err
  assert says in errors and errors.count("\n") == 1
