"""Running parity at the size of a test: one layer of width 16, with dropout and AdamW."""

import ml_collections


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  del preset  # there is one size
  return ml_collections.ConfigDict(dict(
      seed=0,
      task=dict(name="parity.Parity", tokens=8, batch_size=16, seed=0),
      model=dict(name="lm.LM", depth=1, width=16, placement="pre", dropout=0.1, dtype="float32",
                 mixer=dict(name="scalar_decay.ScalarDecayAttention", heads=2, key_dim=4, value_dim=4),
                 channel=dict(name="mlp.MLP", hidden=16), norm=dict(name="rms_norm.RMSNorm")),
      optim=dict(name="adamw", lr=1e-2, warmup=5, steps=60, clip=1.0),
      train=dict(log_every=5, eval_every=30, eval_batches=2, save_every=20)))
