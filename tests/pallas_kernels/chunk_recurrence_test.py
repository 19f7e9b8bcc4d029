"""The laws of the recurrence, for every backend that computes it.

A backend that can run in the test process is added to `BACKENDS`; every law then holds for it or fails.
Errors are relative Frobenius norms against the token by token reference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunk_recurrence import chunk_recurrence

BACKENDS = ["xla", "interpret"]
# Emulating a kernel takes seconds to compile: where shared code is at stake, it is left to `pytest -m slow`.
MOSTLY_XLA = ["xla", pytest.param("interpret", marks=pytest.mark.slow)]
RULES = [(decay, delta) for decay in ("none", "scalar", "vector") for delta in (False, True)]
# Where a law rests on code that all rules share, the plainest and the richest rule stand for the rest.
ENDS = [("scalar", False), ("vector", True)]
NAMES = ("q", "k", "v", "g", "beta", "initial_state")

# Bounds of the error against the reference of the same or higher precision.
BOUND = {"float32": 5e-6, "float32 gradient": 2e-5, "float32 packed": 2e-5,
         "bfloat16": 1e-2, "bfloat16 gradient": 2e-2, "float64": 1e-10}

STATIC = ("backend", "chunk", "reverse", "scale", "precision", "save_states")
_id = lambda rule: rule[0] + ("_delta" if rule[1] else "")
rules = pytest.mark.parametrize("rule", RULES, ids=_id)
ends = pytest.mark.parametrize("rule", ENDS, ids=_id)
backends = pytest.mark.parametrize("backend", BACKENDS)
mostly_xla = pytest.mark.parametrize("backend", MOSTLY_XLA)


def _run(arrays, segment_ids=None, **options):
  q, k, v, g, beta, state = arrays
  return chunk_recurrence(q, k, v, g, beta, initial_state=state, segment_ids=segment_ids,
                          return_final_state=True, **options)


def _loss(arrays, segment_ids=None, **options):
  o, final = _run(arrays, segment_ids, **options)
  loss = jnp.sum(jnp.sin(o.astype(final.dtype))) + jnp.sum(jnp.cos(2 * final))
  return loss, (o, final)


run = jax.jit(_run, static_argnames=STATIC)
loss_and_gradients = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnames=STATIC)


def _inputs(rule, seed=0, B=2, T=37, G=1, H=2, K=8, V=6, g=(-1.0, 0.0), beta=(0.0, 2.0),
            dtype=np.float32):
  decay, delta = rule
  draw = np.random.default_rng(seed)
  q, k = draw.standard_normal((2, B, T, G, K))
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  shape = {"none": None, "head": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}[decay]
  gates = None if shape is None else draw.uniform(*g, shape)
  betas = draw.uniform(*beta, (B, T, H)) if delta else None
  arrays = (q, k, draw.standard_normal((B, T, H, V)), gates, betas, draw.standard_normal((B, H, K, V)))
  return jax.tree.map(lambda x: x.astype(dtype), arrays)


def _rel(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return np.linalg.norm(got - want) / (np.linalg.norm(want) + 1e-30)


def _assert_same(got, want, bound, gradient_bound=None):
  """Compares the ((loss, (o, final)), gradients) of two runs."""
  (_, values), gradients = got
  (_, wanted), wanted_gradients = want
  for name, a, b in zip(("o", "final state"), values, wanted):
    assert _rel(a, b) < bound, (name, _rel(a, b))
  for name, a, b in zip(NAMES, gradients, wanted_gradients):
    if b is not None:
      assert _rel(a, b) < (gradient_bound or bound), (name, _rel(a, b))


def _part(arrays, start, stop, state):
  cut = lambda x: x if x is None or x.ndim == 1 else x[:, start:stop]
  return (*map(cut, arrays[:5]), state)


@backends
@rules
def test_fast_form_is_the_reference_in_value_and_every_gradient(backend, rule):
  arrays = _inputs(rule)
  _assert_same(loss_and_gradients(arrays, backend=backend, chunk=16),
               loss_and_gradients(arrays, backend="reference"),
               BOUND["float32"], BOUND["float32 gradient"])


@mostly_xla
@pytest.mark.parametrize("chunk", [1, 64])
def test_the_chunk_length_does_not_matter(backend, chunk):
  arrays = _inputs(("vector", True))
  _assert_same(loss_and_gradients(arrays, backend=backend, chunk=chunk),
               loss_and_gradients(arrays, backend="reference"),
               BOUND["float32"], BOUND["float32 gradient"])


@mostly_xla
@pytest.mark.parametrize("sizes", [dict(T=1), dict(T=16), dict(B=1, G=3, H=3, K=5, V=1, T=17),
                                   dict(G=2, H=4, K=1, V=7, T=12)],
                         ids=lambda s: "_".join(f"{k}{v}" for k, v in s.items()))
def test_any_size_works(backend, sizes):
  arrays = _inputs(("vector", True), **sizes)
  _assert_same(loss_and_gradients(arrays, backend=backend, chunk=16),
               loss_and_gradients(arrays, backend="reference"),
               BOUND["float32"], BOUND["float32 gradient"])


@mostly_xla
@ends
def test_packed_segments_are_separate_calls_in_value_and_gradient(backend, rule):
  # Segments of 5, 18 and 14 tokens, the second crossing two chunk borders of 8.
  arrays = _inputs(rule, seed=1)
  ids = np.broadcast_to(np.repeat([7, 2, 7], [5, 18, 14])[None], (2, 37)).astype(np.int32)

  def separate(arrays):
    zero = jnp.zeros_like(arrays[5])
    parts = [_run(_part(arrays, *span, state), backend="reference")
             for span, state in zip([(0, 5), (5, 23), (23, 37)], (arrays[5], zero, zero))]
    o, final = jnp.concatenate([o for o, _ in parts], axis=1), parts[-1][1]
    return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(2 * final)), (o, final)

  want = jax.jit(jax.value_and_grad(separate, has_aux=True))(arrays)
  got = loss_and_gradients(arrays, ids, backend=backend, chunk=8)
  _assert_same(got, want, BOUND["float32"], BOUND["float32 packed"])


@mostly_xla
@pytest.mark.parametrize("rule, reverse", [(("scalar", True), False), (("vector", True), True)])
def test_padding_is_skipped_wherever_it_stands(backend, rule, reverse):
  arrays = _inputs(rule, seed=2)
  ids = np.repeat([-1, 0, -5, 0, 3, -1], [3, 9, 2, 6, 12, 5])
  kept = np.flatnonzero(ids >= 0)
  packed = np.broadcast_to(ids[None], (2, 37)).astype(np.int32)
  gather = lambda x: x[:, kept] if x is not None and x.ndim > 1 else x
  short = (*map(gather, arrays[:5]), arrays[5])
  want_o, want_final = run(short, packed[:, kept], backend="reference", reverse=reverse)
  o, final = run(arrays, packed, backend=backend, chunk=8, reverse=reverse)
  assert _rel(o[:, kept], want_o) < BOUND["float32"]
  assert _rel(final, want_final) < BOUND["float32"]
  assert np.all(np.asarray(o)[:, ids < 0] == 0)


@mostly_xla
@pytest.mark.parametrize("rule, cut", [(("scalar", False), 16), (("vector", True), 23)])
def test_a_sequence_cut_anywhere_is_the_whole_sequence(backend, rule, cut):
  arrays = _inputs(rule, seed=3)

  def streamed(arrays):
    o0, state = _run(_part(arrays, 0, cut, arrays[5]), backend=backend, chunk=16)
    o1, final = _run(_part(arrays, cut, 37, state), backend=backend, chunk=16)
    o = jnp.concatenate([o0, o1], axis=1)
    return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(2 * final)), (o, final)

  _assert_same(jax.jit(jax.value_and_grad(streamed, has_aux=True))(arrays),
               loss_and_gradients(arrays, backend="reference"),
               BOUND["float32"], BOUND["float32 gradient"])


@mostly_xla
@ends
def test_reverse_is_flip(backend, rule):
  arrays = _inputs(rule, seed=4)
  flip = lambda x: x if x is None or x.ndim == 1 else x[:, ::-1]
  flipped = (*map(flip, arrays[:5]), arrays[5])
  ids = np.broadcast_to(np.repeat([0, 1], [20, 17])[None], (2, 37)).astype(np.int32)
  (loss, (o, final)), gradients = loss_and_gradients(flipped, ids[:, ::-1], backend="reference")
  want = (loss, (o[:, ::-1], final)), (*map(flip, gradients[:5]), gradients[5])
  for name in ("reference", backend):
    _assert_same(loss_and_gradients(arrays, ids, backend=name, chunk=16, reverse=True), want,
                 BOUND["float32"], BOUND["float32 gradient"])


@mostly_xla
@pytest.mark.parametrize("delta", [False, True])
def test_one_rule_is_another_at_its_limit(backend, delta):
  q, k, v, g_H, beta, state = _inputs(("head", delta), seed=5)
  go = lambda g, beta=beta: run((q, k, v, g, beta, state), backend=backend, chunk=16)[0]
  g_BTH = np.broadcast_to(g_H[None, None], (2, 37, 2)).copy()
  g_BTHK = np.broadcast_to(g_BTH[..., None], (2, 37, 2, 8)).copy()
  assert _rel(go(g_BTH), go(g_H)) < 1e-6
  assert _rel(go(g_BTHK), go(g_BTH)) < 3e-6
  assert _rel(go(0 * g_BTHK), go(None)) < 1e-6
  if delta:
    # beta k v^T without erasing is what a vanishing write leaves to first order.
    tiny = np.full_like(beta, 1e-4)
    silent = run((q, k, v, g_BTH, None, 0 * state), backend=backend, chunk=16)[0]
    assert _rel(run((q, k, v, g_BTH, tiny, 0 * state), backend=backend, chunk=16)[0] * 1e4, silent) < 1e-2


@mostly_xla
def test_key_heads_serve_neighbouring_value_heads(backend):
  arrays = _inputs(("scalar", True), seed=6, G=2, H=4)
  q, k, *rest = arrays
  want = run((np.repeat(q, 2, 2), np.repeat(k, 2, 2), *rest), backend="reference")
  for got, wanted in zip(run(arrays, backend=backend, chunk=16), want):
    assert _rel(got, wanted) < BOUND["float32"]


@mostly_xla
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("gate", [0.0, -1e-6, -30.0, -100.0])
def test_extreme_gates_stay_finite_and_right(backend, decay, delta, gate):
  arrays = _inputs((decay, delta), seed=7, g=(gate, gate))
  got = loss_and_gradients(arrays, backend=backend, chunk=16)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got))
  (_, values), gradients = got
  (_, wanted), wanted_gradients = loss_and_gradients(arrays, backend="reference")
  for a, b in zip(values, wanted):
    assert _rel(a, b) < BOUND["float32"]
  # Gradients of g are of the size of exp(gate) there: compare with the scale of the others.
  for name, a, b in zip(NAMES, gradients, wanted_gradients):
    if b is not None:
      assert np.linalg.norm(a - b) < 2e-5 * max(np.linalg.norm(b), 1.0), name


@mostly_xla
def test_hard_resets_cost_no_more_than_their_rounding(backend):
  arrays = list(_inputs(("scalar", True), seed=8))
  arrays[3][:, [9, 10, 30]] = -60.0
  _assert_same(loss_and_gradients(tuple(arrays), backend=backend, chunk=16),
               loss_and_gradients(tuple(arrays), backend="reference"), 1e-4)


@mostly_xla
@pytest.mark.parametrize("beta", [0.0, 1.0, 1.9, 2.0])
def test_identical_keys_are_finite_and_right(backend, beta):
  q, k, v, _, _, state = _inputs(("none", True), seed=9, T=128)
  k = np.broadcast_to(k[:, :1], k.shape).copy()
  arrays = (q, k, v, None, np.full(v.shape[:3], beta, np.float32), state)
  _assert_same(loss_and_gradients(arrays, backend=backend, chunk=64),
               loss_and_gradients(arrays, backend="reference"), 2e-5, 3e-4)


@mostly_xla
@ends
def test_bfloat16_stays_within_its_bounds(backend, rule):
  half = _inputs(rule, seed=10, dtype=jnp.bfloat16)
  half = (*half[:3], *jax.tree.map(lambda x: x.astype(np.float32), half[3:]))
  exact = jax.tree.map(lambda x: x.astype(np.float32), half)
  _assert_same(loss_and_gradients(half, backend=backend, chunk=16),
               loss_and_gradients(exact, backend="reference"),
               BOUND["bfloat16"], BOUND["bfloat16 gradient"])


@ends
def test_float64_agrees_to_ten_digits(rule):
  with jax.enable_x64(True):
    arrays = _inputs(rule, seed=11, G=1, dtype=np.float64)
    ids = np.broadcast_to(np.repeat([0, 1], [20, 17])[None], (2, 37)).astype(np.int32)
    _assert_same(loss_and_gradients(arrays, ids, backend="xla", chunk=16),
                 loss_and_gradients(arrays, ids, backend="reference"), BOUND["float64"])


@mostly_xla
def test_gradient_of_the_final_state_alone(backend):
  arrays = _inputs(("vector", True), seed=13)
  final = lambda a, **kw: jnp.sum(_run(a, **kw)[1])
  got = jax.jit(jax.grad(functools.partial(final, backend=backend, chunk=16)))(arrays)
  want = jax.jit(jax.grad(functools.partial(final, backend="reference")))(arrays)
  assert not np.any(got[0]) and not np.any(want[0])  # queries never touch the state
  for name, a, b in zip(NAMES[1:], got[1:], want[1:]):
    assert _rel(a, b) < BOUND["float32 gradient"], name


@mostly_xla
@ends
def test_no_token_sees_its_future(backend, rule):
  arrays = _inputs(rule, seed=14, B=1, T=12, K=4, V=3)

  def outputs(x_T):
    q, k, v, g, beta, state = arrays
    x = x_T[None, :, None, None]
    beta = None if beta is None else beta * x[..., 0]
    return jnp.sum(_run((q * x, k * x, v * x, g, beta, state), backend=backend, chunk=8)[0], (0, 2, 3))

  seen_TT = jax.jit(jax.jacrev(outputs))(jnp.ones(12))
  assert np.all(np.triu(seen_TT, 1) == 0)
  assert np.all(np.diag(seen_TT) != 0)


@mostly_xla
def test_vmap_remat_and_scan_change_nothing(backend):
  many = jax.tree.map(lambda *x: np.stack(x), *[_inputs(("scalar", True), seed=s) for s in (15, 16)])
  loss = lambda save: jax.checkpoint(lambda a: _loss(a, backend=backend, chunk=16, save_states=save)[0])
  mapped = jax.jit(jax.vmap(jax.grad(loss("save"))))(many)
  step = lambda carry, a: (carry, jax.grad(loss("recompute"))(a))
  _, scanned = jax.jit(lambda m: jax.lax.scan(step, 0, m))(many)
  for i in range(2):
    _, want = loss_and_gradients(jax.tree.map(lambda x: x[i], many), backend="reference")
    for name, a, b, c in zip(NAMES, mapped, scanned, want):
      assert max(_rel(a[i], c), _rel(b[i], c)) < BOUND["float32 gradient"], name


def test_nested_vmaps_run():
  arrays = _inputs(("vector", True), seed=17)
  nest = jax.tree.map(lambda x: np.broadcast_to(x[None, None, None], (2, 1, 2, *x.shape)), arrays)
  go = lambda a: _run(a, backend="xla", chunk=16)[0]
  for _ in range(3):
    go = jax.vmap(go)
  want = run(arrays, backend="reference")[0]
  assert _rel(jax.jit(go)(nest)[1, 0, 1], want) < BOUND["float32"]


@mostly_xla
def test_flat_heads_are_split_heads(backend):
  q, k, v, g, beta, state = _inputs(("vector", True), seed=18, G=1, H=2)
  flat = lambda x: x.reshape(*x.shape[:2], -1)
  go = jax.jit(functools.partial(chunk_recurrence, backend=backend, num_heads=2, num_key_heads=1, chunk=16))
  o, _ = go(flat(q), flat(k), flat(v), flat(g), beta, initial_state=state)
  assert _rel(o, flat(run((q, k, v, g, beta, state), backend="reference")[0])) < BOUND["float32"]


def test_scale_multiplies_the_output():
  arrays = _inputs(("scalar", True), seed=19)
  unit, half = (run(arrays, backend="xla", chunk=16, scale=s)[0] for s in (1.0, 0.5))
  np.testing.assert_allclose(half, 0.5 * unit, rtol=1e-6)


def test_state_never_outgrows_what_was_written():
  q, k, v, g, beta, state = _inputs(("vector", True), seed=20, T=200)
  _, final = run((q, k, v, g, beta, state), backend="xla")
  written = np.linalg.norm(state, axis=(2, 3)) + np.sum(beta * np.linalg.norm(v, axis=-1), axis=1)
  assert np.all(np.linalg.norm(final, axis=(2, 3)) <= written)
