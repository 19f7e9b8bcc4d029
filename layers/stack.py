"""The residual stack: L blocks of a mixer and a channel mixer, scanned over depth.

Each block is two sublayers of the form that layers/placement.py tabulates. Runs
of layers that repeat (all alike, or a pattern such as linear, linear,
attention) become one `lax.scan`, so compile time does not grow with depth; what
repeats nowhere is unrolled. A run of layers i to j is the submodule scan_i_to_j,
whose parameters carry the repeats as leading axis, or layers_i_to_j. Repeats may share
their parameters: layers/depth/sharing.py.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import context as ctx
from layers import probe, segments
from layers.depth import sharing
from layers.placement import Placement

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Run(NamedTuple):
  """`repeats` copies in a row of the layers first .. first + period - 1."""

  first: int
  period: int
  repeats: int

  @property
  def name(self) -> str:
    """Name of the submodule that holds these layers."""
    kind = "scan" if self.repeats > 1 else "layers"
    return f"{kind}_{self.first}_to_{self.first + self.period * self.repeats - 1}"


def find_runs(kinds: tuple) -> list[Run]:
  """Cuts a sequence of layer kinds into repeated stretches, the widest one first found.

  A stretch repeats at least twice; a single layer is a run of one. Among
  stretches that cover equally many layers the shortest period wins.
  """
  runs, at, L = [], 0, len(kinds)
  while at < L:
    best = Run(at, 1, 1)
    for period in range(1, (L - at) // 2 + 1):
      unit, repeats = kinds[at:at + period], 1
      while kinds[at + repeats * period:at + (repeats + 1) * period] == unit:
        repeats += 1
      if repeats > 1 and period * repeats > best.period * best.repeats:
        best = Run(at, period, repeats)
      if best.period * best.repeats == L - at:
        break
    runs.append(best)
    at += best.period * best.repeats
  return runs


def by_depth(tree, runs: list[Run], of_layer: Callable):
  """Returns [L, ...]: `of_layer` of what each layer has in a collection of the stack, layer 0 first.

  Args:
    tree: the collection, with the names of a Stack; a layer without an entry has {}.
    runs: of the stack.
    of_layer: subtree of one layer -> array of a shape that all layers share.
  """
  parts = []
  for run in runs:
    blocks = [tree.get(run.name, {}).get(f"block_{i}", {}) for i in range(run.period)]
    if run.repeats == 1:
      parts.append(jnp.stack([of_layer(block) for block in blocks]))
    else:
      each = jax.vmap(of_layer, axis_size=run.repeats)
      part = jnp.stack([each(block) for block in blocks], axis=1)
      parts.append(part.reshape(-1, *part.shape[2:]))
  return jnp.concatenate(parts)


class Block(nn.Module):
  """One layer: x -> sublayer(mixer) -> sublayer(channel), placed by four flags.

  Attributes:
    mixer, channel, norm: factories of modules that take `name`; channel may be None. A norm
      is told which positions are real where segment ids mark padding.
    pre, out, post: which norms this layer has.
    dropout: rate on what each sublayer adds.
    train: whether dropout is active.
  """

  mixer: Callable[..., nn.Module]
  channel: Callable[..., nn.Module] | None
  norm: Callable[..., nn.Module]
  pre: bool = True
  out: bool = False
  post: bool = False
  dropout: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None, gain_BT=None):
    weigh = lambda y_BTD: y_BTD if gain_BT is None else (gain_BT[..., None] * y_BTD).astype(y_BTD.dtype)
    real_BT = segments.real(segment_ids)
    def place(x_BTD, sublayer, name):
      h_BTD = self.norm(name=f"{name}_pre_norm")(x_BTD, real_BT) if self.pre else x_BTD
      # Factors stay float32: rounded to bfloat16 they would be off by up to 0.4 %.
      y_BTD, *rest = sublayer((in_scale * h_BTD).astype(h_BTD.dtype))
      y_BTD = self.norm(name=f"{name}_out_norm")(y_BTD, real_BT) if self.out else y_BTD
      if self.dropout:
        y_BTD = nn.Dropout(self.dropout, deterministic=not self.train)(y_BTD)
      x_BTD = (alpha * x_BTD + y_BTD).astype(x_BTD.dtype)
      x_BTD = self.norm(name=f"{name}_post_norm")(x_BTD, real_BT) if self.post else x_BTD
      return x_BTD, *rest

    mixer = self.mixer(name="mixer")
    if getattr(mixer, "uses_context", False):
      x_BTD, state, context = place(
          x_BTD, lambda h: mixer(h, state, segment_ids, context), "mixer")
    else:
      x_BTD, state = place(x_BTD, lambda h: mixer(h, state, segment_ids), "mixer")
    if self.channel is not None:
      channel = self.channel(name="channel")
      run = functools.partial(channel, real_BT=real_BT) if getattr(channel, "takes_real", False) else channel
      if getattr(channel, "uses_context", False):
        x_BTD, context = place(x_BTD, lambda h: run(h, context), "channel")
      else:
        x_BTD, = place(x_BTD, lambda h: (weigh(run(h)),), "channel")
    return x_BTD, context, state


class Period(nn.Module):
  """The layers of one period of a run, as the body of a scan over its repeats."""

  blocks: tuple[Callable[..., nn.Module], ...]

  @nn.compact
  def __call__(self, carry, states, scales, segment_ids):
    x_BTD, context = carry
    finals = []
    for i, block in enumerate(self.blocks):
      state, given = None if states is None else states[i], (x_BTD, context)
      layer = block(name=f"block_{i}")
      x_BTD, context, final = layer(x_BTD, context, state, *[scale[i] for scale in scales], segment_ids)
      # Here and not in the block, which a depth policy may run on some tokens, and more than once.
      x_BTD, context = ctx.after(x_BTD, context, *given)
      probe.show(layer, "stream_BTD", lambda: x_BTD)
      # Without a state to carry nobody wants one back, and a scan would keep them all.
      finals.append(None if states is None else final)
    return (x_BTD, context), None if states is None else tuple(finals)


def _on_blocks(function, setting, variables):
  return {k: function(tree, setting) for k, tree in variables.items()}


class Stack(nn.Module):
  """All layers, between the norm on the embeddings and the final norm if placed.

  Attributes:
    mixers: one factory per layer; equal entries make a run that can be scanned.
    channel: factory of the channel mixer, or None for none.
    norm: factory of the norms.
    placement: the row of layers/placement.py, for as many layers.
    dropout: rate on what each sublayer adds.
    scan: whether runs are scanned; False unrolls every layer.
    remat: what the backward pass keeps of a layer: "none" recomputes nothing,
      "dots" keeps matrix products, "full" keeps only the layer's input.
    train: whether dropout is active.
    share: which layers share their matrices, as in "cycle:2"; "" none.
    lora_rank: rank of what each layer adds to a shared matrix.
    policy: factory of a layer of layers/depth that lets only some tokens into the layer it wraps; None lets all.
  """

  mixers: tuple[Callable[..., nn.Module], ...]
  channel: Callable[..., nn.Module] | None
  norm: Callable[..., nn.Module]
  placement: Placement
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  train: bool = False
  share: str = ""
  lora_rank: int = 0
  policy: Callable[..., nn.Module] | None = None

  def runs(self) -> list[Run]:
    """Returns how the layers are cut into scans."""
    place = self.placement
    routed = [self._ratio(layer) for layer in range(len(self.mixers))]
    kinds = tuple(zip(self.mixers, place.pre, place.out, place.post, routed))
    if self.share or self.lora_rank:
      return self._shared_runs(kinds)
    return find_runs(kinds) if self.scan else [Run(i, 1, 1) for i in range(len(kinds))]

  def init_state(self, batch: int):
    """Returns the zero states of all mixers, one entry per run; a policy may want several of a layer, as a tuple."""
    def of_layer(layer):
      state = self.mixers[layer](parent=None).init_state(batch)
      wanted = 0 if self._ratio(layer) is None else getattr(self.policy(parent=None), "states", 0)
      return (state,) * wanted if wanted else state
    def of_run(run):
      states = tuple(of_layer(layer) for layer in range(run.first, run.first + run.period))
      if run.repeats == 1:
        return states
      return jax.tree.map(lambda s: jnp.repeat(s[None], run.repeats, axis=0), states)
    return tuple(of_run(run) for run in self.runs())

  @nn.compact
  def __call__(self, x_BTD, states=None, segment_ids=None):
    """Returns (x_BTD, states); no states come back where none went in."""
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r} is unknown; choose from {', '.join(REMAT)}.")
    skip = self.get_variable("skip", "layer")
    context = ctx.first(self._init_carry(*x_BTD.shape[:2]), skip)
    scales = [jnp.asarray(s, jnp.float32)
              for s in (self.placement.in_scale, self.placement.alpha)]
    real_BT = segments.real(segment_ids)
    if self.placement.embed_norm:
      x_BTD = self.norm(name="embed_norm")(x_BTD, real_BT)
    probe.show(self, "stream_BTD", lambda: x_BTD)
    finals = []
    for i, run in enumerate(self.runs()):
      stop = run.first + run.period * run.repeats
      of_run = [s[run.first:stop].reshape(run.repeats, run.period) for s in scales]
      state = None if states is None else states[i]
      period = Period
      if self.remat != "none":
        period = nn.remat(Period, policy=REMAT[self.remat], prevent_cse=run.repeats == 1)
      if run.repeats > 1:
        period = nn.scan(
            period, length=run.repeats, in_axes=(0, 0, nn.broadcast), out_axes=0,
            variable_axes={True: 0}, split_rngs={True: True})
      else:
        of_run = [s[0] for s in of_run]
      if self.share and run.repeats > 1:
        # The parameters that are stored are the shared ones; the layers see all of theirs.
        starting = self.is_initializing()
        period = nn.map_variables(
            period, "params", init=starting, mutable=starting,
            trans_in_fn=functools.partial(_on_blocks, sharing.untie, run.repeats),
            trans_out_fn=functools.partial(_on_blocks, sharing.first, self.lora_rank))
      body = period(self._blocks(run), name=run.name)
      (x_BTD, context), final = body((x_BTD, context), state, of_run, segment_ids)
      finals.append(final)
    if self.placement.final_norm:
      x_BTD = self.norm(name="final_norm")(x_BTD, real_BT)
    return x_BTD, None if states is None else tuple(finals)

  def _shared_runs(self, kinds):
    if self.lora_rank < 0 or self.lora_rank and not self.share:
      raise ValueError(f"lora_rank={self.lora_rank} must be at least 0, and 0 where share='' ties no layers.")
    if not self.scan:
      raise ValueError(f"share={self.share!r} scans over the layers of a block; set scan=True.")
    runs = [Run(*stretch) for stretch in sharing.stretches(self.share, len(kinds))]
    for run in runs:
      unit = kinds[run.first:run.first + run.period]
      if kinds[run.first:run.first + run.period * run.repeats] != unit * run.repeats:
        raise ValueError(f"share={self.share!r}: layers of one block differ in their mixer or their norms; "
                         "take a pattern whose length divides the period.")
    return runs

  def _blocks(self, run):
    def block(layer):
      place = self.placement
      def make(name):
        if self._ratio(layer) is not None:
          return self.policy(block=make_plain, layer=layer, depth=len(self.mixers), name=name)
        return make_plain(name)
      def make_plain(name):
        return Block(self.mixers[layer], self.channel, self.norm, place.pre[layer],
                     place.out[layer], place.post[layer], self.dropout, self.train, name=name)
      return make
    return tuple(block(layer) for layer in range(run.first, run.first + run.period))

  def _ratio(self, layer):
    """Returns the share of tokens that a layer sees, None where it is not routed."""
    return self.policy(parent=None).ratio_at(layer, len(self.mixers)) if self.policy else None

  def _init_carry(self, batch, tokens):
    """Collects the cross-layer states that layers declare, before the first layer."""
    carry = {}
    for make in dict.fromkeys([*self.mixers, self.channel]):
      layer = make and make(parent=None)
      if getattr(layer, "uses_context", False):
        carry |= layer.init_carry(batch, tokens)
    return carry
