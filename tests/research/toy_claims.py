"""Two steps of parity and made-up numbers: claims whose verdicts are known."""

import math

import ml_collections

from research.claims import Claim

FAMILY = "toys"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  del preset  # there is one size
  return ml_collections.ConfigDict(dict(
      task=dict(name="parity.Parity", tokens=8, batch_size=16),
      model=dict(name="lm.LM", depth=1, width=32, placement="pre",
                 mixer=dict(name="scalar_decay.ScalarDecayAttention", heads=2, key_dim=4, value_dim=4),
                 channel=dict(name="mlp.MLP", hidden=16), norm=dict(name="rms_norm.RMSNorm")),
      optim=dict(name="sgd", lr=1e-2, steps=2),
      train=dict(log_every=2, eval_every=0, eval_batches=1, save_every=2)))


def measure(program, state):
  """Returns numbers that follow from the learning rate and the seed, however the training went."""
  lr, seed = program.config.optim.lr, int(state.cursor) // 2**20
  if lr == 0.5:
    raise ArithmeticError("on purpose")
  return {"made/loss": -math.log10(lr) + 0.01 * math.sin(1e5 * lr + 5 * seed)}


def arms():
  return {"base": {}, "low": {"optim.lr": 1e-3}, "near": {"optim.lr": 1.001e-2}}


def _claim(**changes):
  return Claim(**(dict(paper="A toy", year=2020, metric="made/loss", better="lower", margin="0 nats", seeds=3) | changes))


def claims():
  return [
      _claim(id="true", statement="The base is better than low", arm="base", against="low", year=2021),
      _claim(id="false", statement="Low is better | than the base", arm="low", against="base"),
      _claim(id="open", statement="Two seeds tell near from the base", arm="near", against="base", seeds=2),
  ]
