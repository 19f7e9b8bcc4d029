r"""Does the engine say FAILS where a claim is false, and INCONCLUSIVE where the seeds are too few?

Running parity with a model of width 16, where the answers are known beforehand.

    python -m research.verify controls

cpu: 2 cores, 1 minute on a busy machine: one FAILS, one INCONCLUSIVE, as they must
smoke: 2 cores, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke")
FAMILY = "controls"
NONE = "No paper: a control of this engine"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  steps = {"smoke": 30, "cpu": 200}[preset]
  return ml_collections.ConfigDict(dict(
      task=dict(name="parity.Parity", tokens=8, batch_size=32),
      model=dict(name="lm.LM", depth=1, width=16, placement="pre",
                 mixer=dict(name="attention.Attention", heads=2, head_dim=8, max_tokens=8),
                 channel=dict(name="mlp.MLP", hidden=64), norm=dict(name="rms_norm.RMSNorm")),
      optim=dict(name="adamw", lr=1e-2, warmup=10, steps=steps, clip=1.0),
      train=dict(log_every=10, eval_batches=8, save_every=steps)))


def arms():
  return {"trained": {}, "hardly_trained": {"optim.lr": 1e-6}, "a_little_faster": {"optim.lr": 1.1e-2}}


def claims():
  return [
      Claim(id="training_does_not_help", paper=NONE, year=2026,
            statement="A learning rate of 1e-6 reaches a lower loss than one of 1e-2 in 200 steps (false on purpose)",
            metric="eval/loss", better="lower", arm="hardly_trained", against="trained", margin="0 nats", seeds=5,
            paper_value="must come out FAILS"),
      Claim(id="two_seeds_are_enough", paper=NONE, year=2026,
            statement="Two seeds tell a learning rate of 1.1e-2 from one of 1e-2 (underpowered on purpose)",
            metric="eval/loss", better="lower", arm="a_little_faster", against="trained", margin="0.001 nats", seeds=2,
            paper_value="must come out INCONCLUSIVE"),
  ]
