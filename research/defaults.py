"""What an experiment file need not say: the engine's settings, with the values they take then.

A loaded config is completed with these, so that every setting is a leaf that can
be overridden, is written into config.json and is part of the config's id.
"""

import ml_collections

from research.errors import ConfigError, nearest, shown

DEFAULTS = {
    "model": dict(pattern=("mixer",), placement="pre", dropout=0.0, scan=True, remat="none",
                  dtype="float32"),
    # How parameters start: research/initialize.py.
    "init": dict(kernel="layer", std=0.02, residual="plain"),
    # Learning rate and gradient: research/optim.py.
    "optim": dict(schedule="cosine", warmup=0, final=0.0, clip=0.0, accumulate=1),
    "train": dict(
        log_every=10,  # steps between lines of metrics.jsonl
        eval_every=0,  # steps; 0 evaluates only at the end
        lengths=(1,),  # factors on the tokens of a synthetic task, for the last evaluation
        eval_batches=16,  # in the evaluations on the way; the last one reads all
        save_every=200,  # steps
        diagnostics=False,  # with every evaluation a line of depth.jsonl, of routing.jsonl too: research/diagnostics.py
        keep=2,  # checkpoints
        nan_patience=5,  # refused steps in a row before the run ends with exit code 3
        stall_seconds=0),  # without a step before the run ends with exit code 4; 0 waits for ever
    # Devices per axis; data=0 takes what the others leave: research/sharding.py.
    "mesh": dict(data=0, fsdp=1, tensor=1, expert=1, sequence=1),
    # Text written after training; 0 tokens write none.
    "sample": dict(prompt="", tokens=0, temperature=1.0),
}
# Settings that a config has only where it sets them, with what holds where it does not:
# so that an experiment without them keeps its id.
OPTIONAL = {"optim": dict(trainable="", rescale_every=0, rescale_target=0.02, rescale_threshold=1.2),
            "model": dict(share="", lora_rank=0),  # layers/depth/sharing.py
            "init": dict(grow="", grow_factor=2, grow_steps=0)}  # research/growth.py
REQUIRED = ("task.name", "model.name", "model.depth", "model.norm.name", "optim.name", "optim.lr",
            "optim.steps")
# Sections whose keys are exactly the ones above; the others hold fields of what they name.
CLOSED = ("init", "train", "mesh", "sample")


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Adds every setting that the config leaves out, in place, and returns it.

  Raises:
    ConfigError: an unknown section or setting, or one that has no default and is missing.
  """
  sections = {"seed", "task", *DEFAULTS}
  for section in config:
    if section not in sections:
      raise ConfigError(f"config.{section}: unknown section; {nearest(section, sections)}")
  config.seed = config.get("seed", 0)
  for section, settings in DEFAULTS.items():
    given = config.get(section, ml_collections.ConfigDict())
    known = settings | OPTIONAL.get(section, {})
    for k in given if section in CLOSED else ():
      if k not in known:
        raise ConfigError(f"config.{section}.{k}={shown(given[k])}: unknown key; {nearest(k, known)}")
    config[section] = ml_collections.ConfigDict({**settings, **given})
  for key in REQUIRED:
    node = config
    for part in key.split("."):
      if part not in node:
        raise ConfigError(f"config.{key} is missing; the experiment file has to set it.")
      node = node[part]
  return config
