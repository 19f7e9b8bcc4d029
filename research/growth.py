"""A run that begins as a smaller one: trained for some steps, then grown to the size of the config.

Optional settings of `config.init`:

    grow         operator of layers/convert/growth.py, "" for none, or one of two that keep the size: "relax", where
                 the small model is the one without model.share, and its layers are tied as layers/depth/sharing.py
                 says; "factor", where its gated linear units are dense, and are cut into the experts of
                 layers/channel/factored_glu.py
    grow_factor  g: the small model has depth / g layers; for "wide" the same layers and width / g
    grow_steps   steps of the small model, with the same optimizer and batch

The small model trains on data of its own, that of seed + 1024, in the folder small/ of the run, from where it
is also resumed. The optimizer of the grown model starts anew, and so does its schedule: step 1 is the first
after the growth.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax

from layers.convert import factor_ffn, growth
from research import config as configs
from research import parameters, saved_steps
from research.errors import ConfigError, nearest, shown
from research.state import first_batch
from research.step import forward

SHIFT = 1024  # seeds: research/state.py has 2048 stretches of data
SAME_SIZE = ("relax", "factor")
FACTORED = "factored_glu.FactoredGLU"
LEARN_STEPS, LEARN_RATE = 50, 0.01  # of the mix of "learn": LiGO trains it for 100


def asked(config) -> bool:
  """Whether a run of the config begins as a smaller one."""
  return bool(config.init.get("grow", ""))


def small_config(config):
  """Returns the config of the model before growth.

  Raises:
    ConfigError: an unknown operator, or a size that the factor does not divide.
  """
  key = "config.init"
  operator, factor, steps = (config.init.get(k, v) for k, v in (("grow", ""), ("grow_factor", 2), ("grow_steps", 0)))
  if operator not in (*growth.OPERATORS, *SAME_SIZE):
    raise ConfigError(f"{key}.grow={shown(operator)} is unknown; {nearest(operator, (*growth.OPERATORS, *SAME_SIZE))}")
  if factor < 2 or not 1 <= steps < 2**31:
    raise ConfigError(f"{key}.grow_factor={factor} must be at least 2, and {key}.grow_steps={steps} from 1 to 2**31 - 1.")
  size = "width" if operator == "wide" else "depth"
  if operator not in SAME_SIZE and config.model[size] % factor:
    raise ConfigError(f"config.model.{size}={config.model[size]} must be a multiple of {key}.grow_factor={factor}.")
  if operator == "wide" and config.model.get("tied", False):
    raise ConfigError("config.model.tied=True: a tied head would sum every repeated unit; wide growth needs tied=False.")
  small = config.copy_and_resolve_references()
  if operator == "relax":
    if not config.model.get("share", ""):
      raise ConfigError(f"{key}.grow='relax' ties layers: set config.model.share, as in 'cycle:2'.")
    small.model.share, small.model.lora_rank = "", 0
  elif operator == "factor":
    if config.model.get("channel", {}).get("name") != FACTORED:
      raise ConfigError(f"{key}.grow='factor' cuts gated linear units into experts: set "
                        f"config.model.channel.name={FACTORED!r}.")
    configs.override(small, {"model.channel.name": "glu.GLU"})
  else:
    small.model[size] = config.model[size] // factor
  small.init.grow = ""
  small.optim.steps = steps
  small.optim.warmup = min(config.optim.warmup, steps)
  return small


def needed(config, directory: pathlib.Path) -> bool:
  """Whether the small model is still to be trained: not once the grown one has a checkpoint."""
  return asked(config) and not saved_steps.existing(directory / "ckpt")


def check(small, big) -> None:
  """Refuses programs of which one cannot be grown to the other.

  Raises:
    ConfigError: which parameter does not fit.
  """
  jax.eval_shape(lambda old, first: _params(small, big, old, first, big.config.init.grow), _bare(small), _bare(big))


def grown(small, big, old, first, batches=(), operator=""):
  """Returns the state in which the big model starts.

  Args:
    small, big: programs.
    old: state of the small one.
    first: fresh state of the big one.
    batches: training batches for the mix of "learn".
    operator: where the config of the big model names none.
  """
  operator = operator or big.config.init.grow
  mix = _learned_mix(small, big, old, batches) if operator == "learn" else None
  def make(old, first, mix):
    params = _params(small, big, old, first, operator, mix=mix)
    extra = first.extra
    if operator == "factor":
      extra = {**extra, factor_ffn.TEACHER: factor_ffn.teacher_of(params, extra[factor_ffn.TEACHER])}
    return first.replace(params=params, extra=extra, opt_state=big.optimizer.init(params))
  if big.seeds:
    make = jax.vmap(make, in_axes=(0, 0, None if mix is None else 0))
  shardings = jax.tree.map(lambda s: s.sharding, big.abstract)
  return jax.jit(make, out_shardings=shardings)(old, first, mix)


def batches(program, seeds):
  """Yields what "learn" reads: the training batches after those of the small model, or nothing.

  Args:
    program: of the big model.
    seeds: of the small one: an int, or an array of ints.
  """
  small, init = program.small, program.config.init
  for step in range(init.grow_steps, init.grow_steps + LEARN_STEPS if init.grow == "learn" else 0):
    if not small.task.on_device:
      yield small.put_train(small.train_batch(seeds, step))
    else:
      draw = lambda cursor: small.task.batch("train", cursor)
      cursors = first_batch(jnp.asarray(seeds)) + step
      yield (jax.vmap(draw) if small.seeds else draw)(cursors)


def _bare(program):
  """Returns the shapes of a state of one model, without an axis of seeds."""
  one = (lambda s: s.shape[1:]) if program.seeds else (lambda s: s.shape)
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(one(s), s.dtype), program.abstract)


def _params(small, big, old, first, operator, *, mix=None):
  if operator == "wide":
    made = jax.tree_util.tree_map_with_path(_widened, old.params, first.params)
  else:
    layers, runs = growth.layers_of(old.params["stack"], _runs(small)), _runs(big)
    if operator != "relax" and big.config.model.get("share", ""):
      raise ConfigError(f"config.init.grow={operator!r}: layers of config.model.share={big.config.model.share!r} cannot "
                        "grow; leave one of the two empty.")
    if operator == "zero" and any(big.model.stack(parent=None).placement.post):
      raise ConfigError(f"config.init.grow='zero': with config.model.placement={big.config.model.placement!r} a norm "
                        "follows every layer, and a silent layer is not nothing; take 'pre', or grow='stack'.")
    fresh = growth.layers_of(first.params["stack"], runs) if operator in ("random", "factor") else None
    if operator == "learn" and mix is None:
      mix = growth.first_mix(layers, big.config.model.depth)
    try:
      if operator == "relax":
        stack = growth.tied(layers, runs, big.config.model.get("lora_rank", 0))
      elif operator == "factor":
        stack = growth.stack_of(list(map(factor_ffn.cut, layers, fresh)), runs)
      else:
        stack = growth.stack_of(growth.deepen(layers, big.config.model.depth, operator, fresh=fresh, mix=mix), runs)
    except ValueError as error:
      raise ConfigError(f"config.init.grow={operator!r}: {error}") from error
    made = {**old.params, "stack": _kept(old) | stack}
  shape = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  if shape(made) != shape(first.params):
    raise ConfigError(f"config.init.grow={operator!r}: layers differ in more than their number; "
                      "the pattern and the placement must repeat with the small model's depth.")
  return made


def _kept(state):
  return {k: v for k, v in state.params["stack"].items() if not k.startswith(("scan_", "layers_"))}


def _runs(program):
  return program.model.stack(parent=None).runs()


def _widened(path, leaf, target):
  role = parameters.role(path, leaf)
  inputs = tuple(i for i, axis in enumerate(role.axes) if role.is_matrix and axis in role.inputs)
  try:
    return growth.widen(leaf, target.shape, inputs)
  except ValueError as error:
    raise ConfigError(f"config.init.grow='wide': {jax.tree_util.keystr(path)}: {error}") from error


def _learned_mix(small, big, old, batches):
  """Returns the mix that lowers the loss of the grown model, by Adam from that of "stack"."""
  rule = optax.adam(LEARN_RATE)
  def loss(mix, old, batch):
    # Only the tree of the fresh parameters is asked for: "learn" takes nothing from them.
    params = _params(small, big, old, _bare(big), "learn", mix=mix)
    total, weight, *_ = forward(big.model, big.task, params, old.extra, batch)
    return total / jnp.maximum(weight, 1.0)
  def step(mix, moments, old, batch):
    updates, moments = rule.update(jax.grad(loss)(mix, old, batch), moments)
    return optax.apply_updates(mix, updates), moments
  def start(old):
    mix = growth.first_mix(growth.layers_of(old.params["stack"], _runs(small)), big.config.model.depth)
    return mix, rule.init(mix)
  seeds = bool(big.seeds)
  mix, moments = (jax.vmap(start) if seeds else start)(old)
  step = jax.jit(jax.vmap(step) if seeds else step)
  for batch in batches:
    mix, moments = step(mix, moments, old, batch)
  return mix
