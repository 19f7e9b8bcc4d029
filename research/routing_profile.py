"""Where routers send tokens: numbers by expert, by class of byte and by token, of one validation batch.

With g_n the gates of token n, and a choice (n, e) wherever g_n[e] is not zero, a routed layer of E experts has

    load           [E]     share of all choices that goes to each expert; 1 / E is even
    max_violation          E times the largest load, minus 1: 0 at balance
    entropy                mean over tokens of the entropy of |g_n| / sum |g_n|, in nats; tokens without a choice apart
    dropped                share of choices that found their expert full; nan where no expert can be full
    classes        [C, E]  share of the choices of each class of bytes that goes to each expert; nan for a class
                           without any. Only where tokens are bytes

and a model with a policy of layers/depth, for its first row,

    applied        [T]     how many times some layer ran on each token
    bytes          [T]     what the tokens are, where they are bytes

Padding is left out, but for `dropped`: a full expert is full of whatever comes. The model is in eval mode. Layers
are read from what one forward pass shows of them, layers/probe.py; research/diagnostics.py makes that pass.

References: Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024 (maximal
violation); Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024 (specialisation by vocabulary).
"""

import string

import jax
import jax.numpy as jnp
import numpy as np

from layers import probe, routing
from layers.stack import by_depth

# Dims: L layers, B batch, T tokens, N tokens of all rows, E experts, C classes of bytes.

CLASSES = ("letters", "digits", "spaces", "punctuation", "other")
OF_LAYER = ("load", "max_violation", "entropy", "dropped", "classes")
OF_ROW = ("applied", "bytes")


def class_of_byte() -> np.ndarray:
  """Returns [256], the index in CLASSES of every byte; what is not ASCII is "other"."""
  table = np.full(256, CLASSES.index("other"), np.int32)
  for name, members in zip(CLASSES, (string.ascii_letters, string.digits, string.whitespace, string.punctuation)):
    table[np.frombuffer(members.encode("ascii"), np.uint8)] = CLASSES.index(name)
  return table


def of_choices(gates_NE, real_N) -> dict[str, jax.Array]:
  """Returns load, max_violation and entropy of the real tokens."""
  size_NE = jnp.where(real_N[:, None], jnp.abs(gates_NE), 0.0)
  total_N1 = jnp.sum(size_NE, axis=1, keepdims=True)
  p_NE = size_NE / jnp.where(total_N1 > 0, total_N1, 1.0)
  chosen = jnp.maximum(jnp.sum(total_N1 > 0), 1)
  entropy_N = jnp.sum(jax.scipy.special.entr(p_NE), axis=1)
  return {"load": routing.load(size_NE), "max_violation": routing.balance_stats(size_NE)["max_violation"],
          "entropy": jnp.sum(entropy_N) / chosen}


def by_class(gates_NE, class_N, classes: int):
  """Returns [C, E], the share of the choices of each class that goes to each expert; class -1 counts nowhere."""
  choice_NE = (gates_NE != 0).astype(jnp.float32)
  count_CE = jax.nn.one_hot(class_N, classes).T @ choice_NE
  total_C1 = jnp.sum(count_CE, axis=1, keepdims=True)
  return jnp.where(total_C1 > 0, count_CE / jnp.maximum(total_C1, 1.0), jnp.nan)


def of_layer(layer, real_BT, class_BT=None) -> dict[str, dict]:
  """Returns {module with a router: its numbers} of what one layer shows.

  Args:
    layer: what the collection "depth" holds of it.
    real_BT: which tokens are no padding.
    class_BT: class of every token, -1 for padding; None where tokens are not bytes.
  """
  found = {}
  real_N, class_N = (None if a is None else jnp.concatenate([seen.reshape(-1) for seen in probe.seen(layer, a, none)])
                     for a, none in ((real_BT, False), (class_BT, -1)))
  shown = probe.find(layer, "gates_NE")
  for module in sorted({module for module, _, _ in shown}):
    gates_NE = jnp.concatenate([gates for owner, _, gates in shown if owner == module])
    dropped = [jnp.asarray(share) for owner, _, share in probe.find(layer, "dropped") if owner == module]
    found[module] = of_choices(gates_NE, real_N)
    found[module]["dropped"] = jnp.mean(jnp.stack(dropped)) if dropped else jnp.full((), jnp.nan)
    if class_N is not None:
      found[module]["classes"] = by_class(gates_NE, class_N, len(CLASSES))
  return found


def applied(shown, runs, T: int):
  """Returns [T], how many times the layers ran on each token of the first row; None without a depth policy."""
  if not any(probe.find(run, "kept_BK") for run in shown.values() if hasattr(run, "items")):
    return None

  def of_one(layer):
    runs_BT = [jnp.sum(jax.nn.one_hot(index_BK[0], T, dtype=jnp.int32), axis=0)
               for _, _, index_BK in probe.find(layer, "kept_BK")]
    return sum(runs_BT) if runs_BT else jnp.ones(T, jnp.int32)
  return jnp.sum(by_depth(shown, runs, of_one), axis=0)


def of_shown(shown, runs, batch, text: bool) -> dict:
  """Returns the profile of a model, {} of one that routes nothing.

  Args:
    shown: what its stack shows in a forward pass of `batch`.
    runs: of the stack.
    batch: of a task, with "inputs" and maybe "segment_ids".
    text: whether inputs are bytes.

  Returns:
    {"layers": {"<layer> <module>": numbers}}, with "applied", "bytes" and "real" of the first row.
  """
  inputs, ids_BT = batch["inputs"], batch.get("segment_ids")
  B, T = inputs.shape[:2]
  real_BT = jnp.ones((B, T), bool) if ids_BT is None else ids_BT >= 0
  class_BT = jnp.where(real_BT, jnp.asarray(class_of_byte())[inputs], -1) if text else None
  read, layers = lambda layer: of_layer(layer, real_BT, class_BT), {}
  for run in runs:
    for i in range(run.period):
      layer = shown.get(run.name, {}).get(f"block_{i}", {})
      if run.repeats == 1:
        each = [read(layer)]
      else:
        stacked = jax.vmap(read, axis_size=run.repeats)(layer)
        each = [jax.tree.map(lambda x, r=r: x[r], stacked) for r in range(run.repeats)]
      for r, modules in enumerate(each):
        layers |= {f"{run.first + r * run.period + i} {name}": numbers for name, numbers in modules.items()}
  found = {"layers": layers} if layers else {}
  applied_T = applied(shown, runs, T)
  if applied_T is not None:
    found |= {"applied": applied_T, "real": real_BT[0]} | ({"bytes": inputs[0]} if text else {})
  return found


def record(found, step: int) -> dict:
  """Returns the line of routing.jsonl: {"step", "layers": names, number: one for each of them, "applied", "bytes"}."""
  line = {"step": step}
  if "layers" in found:
    names = sorted(found["layers"], key=lambda name: (int(name.split()[0]), name))
    rows = [found["layers"][name] for name in names]
    line |= {"layers": names} | {key: [np.asarray(row[key]) for row in rows] for key in OF_LAYER if key in rows[0]}
  return line | {key: np.asarray(found[key])[np.asarray(found["real"])] for key in OF_ROW if key in found}
