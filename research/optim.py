"""The optimizer of a config: an optax rule by name, a schedule, clipping.

`config.optim.name` is a function of optax or optax.contrib that takes
`learning_rate`; the node's other keys are its arguments. The learning rate
rises linearly from 0 to `lr` over `warmup` steps, then follows `schedule` to
`final * lr` at step `steps`. Weight decay touches matrices only.

Three more settings a config may have: `trainable`, a regular expression that is
searched in the paths of parameters ("stack/scan_0_to_3/block_0/mixer_pre_norm/scale");
where it is found, and nowhere else, a parameter is trained and has a state of the
optimizer. `rescale_every`, steps, with `rescale_target` and `rescale_threshold`:
research/rescale.py, of trained kernels.
"""

import inspect
import re

import jax
import optax
from optax import contrib

from research import leaves, parameters, rescale
from research.defaults import OPTIONAL
from research.errors import ConfigError, nearest, shown

# Keys of config.optim that are ours; every other key is an argument of the rule.
OURS = ("name", "lr", "schedule", "warmup", "steps", "final", "clip", "accumulate", *OPTIONAL["optim"])
# Rules whose update wants the loss, its curvature or per-example gradients as well; rules
# that take no schedule (rprop, sm3); one that optax replaces by its v2.
NEED_MORE = ("lbfgs", "momo", "momo_adam", "sophia", "dpsgd", "noisy_sgd", "schedule_free",
             "rprop", "sm3", "optimistic_adam")
SCHEDULES = ("constant", "cosine", "linear")


def rules() -> list[str]:
  """Returns the names that config.optim.name may take."""
  found = []
  for module in (optax, contrib):
    for name in dir(module):
      make = getattr(module, name)
      if inspect.isfunction(make) and "learning_rate" in inspect.signature(make).parameters:
        found.append(name)
  return [n for n in found if n not in NEED_MORE and not n.startswith(("_", "scale_by_"))]


def arguments(name: str, key: str) -> dict:
  """Returns the arguments of a rule that a config may set, with their defaults."""
  if name not in rules():
    raise ConfigError(f"{key}={shown(name)} is no optimizer of optax; {nearest(str(name), rules())}")
  make = getattr(optax, name, None) or getattr(contrib, name)
  return {k: p.default for k, p in inspect.signature(make).parameters.items()
          if k != "learning_rate" and _is_plain(k, p.default)}


def _is_plain(name: str, default) -> bool:
  """Whether an argument is a number, a word or a row of numbers, not a dtype, a mask or a function."""
  if default is None:
    return not name.endswith(("dtype", "mask", "dimension_numbers", "optimizer"))
  if isinstance(default, tuple):
    return all(isinstance(x, float) for x in default)
  return isinstance(default, (bool, int, float, str)) and not name.endswith("mask")


def schedule_of(optim) -> optax.Schedule:
  """Returns the learning rate as a function of the step."""
  key = "config.optim"
  lr, warmup, steps = optim.lr, optim.warmup, optim.steps
  final, name = optim.final, optim.schedule
  if lr <= 0:
    raise ConfigError(f"{key}.lr={lr} must be above 0.")
  if not 1 <= steps < 2**31:
    raise ConfigError(f"{key}.steps={steps} must be from 1 to 2**31 - 1.")
  if not 0 <= warmup <= steps:
    raise ConfigError(f"{key}.warmup={warmup} must be from 0 to steps={steps}.")
  if not 0 <= final <= 1:
    raise ConfigError(f"{key}.final={final} must be from 0 to 1, a fraction of lr.")
  if name not in SCHEDULES:
    raise ConfigError(f"{key}.schedule={shown(name)} is unknown; {nearest(name, SCHEDULES)}")
  after = max(1, steps - warmup)
  tail = {
      "constant": lambda: optax.constant_schedule(lr),
      "cosine": lambda: optax.cosine_decay_schedule(lr, after, alpha=final),
      "linear": lambda: optax.linear_schedule(lr, final * lr, after),
  }[name]()
  # The first update already moves: step 0 has the rate lr / (warmup + 1).
  rise = optax.linear_schedule(lr / (warmup + 1), lr, max(1, warmup))
  return optax.join_schedules([rise, tail], [warmup]) if warmup else tail


def optimizer_of(optim) -> optax.GradientTransformation:
  """Returns the whole transform: clip by global norm if asked, then the rule.

  Raises:
    ConfigError: unknown rule, schedule or argument, or a number out of range.
  """
  key = "config.optim"
  known = arguments(optim.name, f"{key}.name")
  given = {k: optim[k] for k in optim if k not in OURS}
  for k, value in given.items():
    if k not in known:
      raise ConfigError(f"{key}.{k}={shown(value)}: unknown key; {nearest(k, [*known, *OURS])}")
  clip = optim.clip
  if clip < 0:
    raise ConfigError(f"{key}.clip={clip} must be 0 (off) or a positive norm.")
  _check_rates(key, given)
  make = getattr(optax, optim.name, None) or getattr(contrib, optim.name)
  takes = inspect.signature(make).parameters
  masks = {"mask": matrices, "weight_decay_mask": matrices,
           "muon_weight_dimension_numbers": muon_axes}
  given |= {k: v for k, v in masks.items() if k in takes}
  try:
    rule = make(schedule_of(optim), **given)
  except (ValueError, TypeError, ArithmeticError) as error:
    raise ConfigError(f"{key}.name={optim.name!r} refuses its arguments: {str(error)[:300]!r}") from error
  more = {k: optim.get(k, v) for k, v in OPTIONAL["optim"].items()}
  chain = [optax.clip_by_global_norm(clip)] * bool(clip) + [rule] + _rescaling(key, more)
  whole = optax.chain(*chain) if len(chain) > 1 else rule
  return only(whole, _pattern(key, more["trainable"]), f"{key}.trainable") if more["trainable"] else whole


def _rescaling(key, more) -> list[optax.GradientTransformation]:
  every, target, threshold = (more[f"rescale_{k}"] for k in ("every", "target", "threshold"))
  if not 0 <= every < 2**31:
    raise ConfigError(f"{key}.rescale_every={every} must be 0 (never) or a number of steps.")
  if target <= 0 or threshold < 1:
    raise ConfigError(f"{key}.rescale_target={target} must be above 0, and rescale_threshold={threshold} "
                      "at least 1 times that.")
  return [rescale.target_variance_rescaling(every, target, threshold)] if every else []


def _pattern(key, text: str) -> re.Pattern:
  try:
    return re.compile(text)
  except re.error as error:
    raise ConfigError(f"{key}.trainable={shown(text)} is no regular expression: {error}.") from error


def only(rule, pattern: re.Pattern, key: str) -> optax.GradientTransformation:
  """Returns the rule for the parameters whose path the pattern is found in; others never move.

  Raises:
    ConfigError: when the state is made, where it is found in no path.
  """
  def labels(params):
    named = leaves.named_leaves(params)
    found = [bool(pattern.search(path)) for path in named]
    if not any(found):
      raise ConfigError(f"{key}={shown(pattern.pattern)} is found in no path of a parameter, such as "
                        f"{next(reversed(named))}.")
    return jax.tree.unflatten(jax.tree.structure(params), ["trained" if f else "frozen" for f in found])
  return optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, labels)


def _check_rates(key, given):
  for k, value in given.items():
    decays = k.removeprefix("adam_") in ("b1", "b2", "b3", "beta", "decay", "momentum")
    if decays and not 0 <= value < 1:
      raise ConfigError(f"{key}.{k}={value} must be at least 0 and below 1.")
    if type(value) in (int, float) and value < 0:
      raise ConfigError(f"{key}.{k}={value} must not be negative.")


def matrices(params):
  """Returns the tree that is True where weight decay applies."""
  return jax.tree.map(lambda r: r.is_matrix, parameters.roles(params),
                      is_leaf=lambda r: isinstance(r, parameters.Role))


def muon_axes(params):
  """Returns what Muon orthogonalises: the matrices of the stack, layer by layer."""
  def axes(role):
    if not role.is_matrix or "vocab" in role.axes or "positions" in role.axes:
      return None
    start, middle = len(role.lead), len(role.lead) + len(role.inputs)
    return contrib.MuonDimensionNumbers(tuple(range(start, middle)),
                                        tuple(range(middle, len(role.axes))))
  return jax.tree.map(axes, parameters.roles(params),
                      is_leaf=lambda r: isinstance(r, parameters.Role))
