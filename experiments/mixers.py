r"""Which token mixer models text best, and what does each cost in time and in state?

Every mixer in one small byte-level language model: two layers, the same steps on the same text. First each in the
shape that its paper gives it, then, with the suffix _state, all with 16 KiB of state per layer. The channel mixer's
width gives all of them the same number of parameters, to 2 %.

    python -m research.sweep --config=mixers --seeds=0:3
    python -m research.verify mixers

The sweep's figures/frontier-eval-loss.png shows the loss against state, tokens per second of training and time
of a decoded token; the CSV beside it is the table. Both are recorded in research/results/mixers/every-mixer.png
and .csv (2026-11-21, one AMD EPYC core per model, jax 0.10.2). A mixer is added by a line in MIXERS, and one in
AT_STATE if its state has another size; tests/research/mixers_page_test.py says which width of the channel mixer fits.

cpu: 2 cores, 4 core minutes for its claims: 3 HOLDS, 1 INCONCLUSIVE; the whole sweep 80
smoke: 2 cores, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke")
FAMILY = "recurrences"
FRONTIER = {"eval/loss": ("count/state_bytes", "throughput/tokens_per_s", "decode/ms")}


def _line(name, hidden, **fields):
  return {"model.mixer.name": name, "model.channel.hidden": hidden} | {f"model.mixer.{k}": v for k, v in fields.items()}


# Shapes as the papers have them, at width 64 with two heads, Mamba-2 with four. The first line has the parameters
# that the others are matched to by their channel mixer's width.
MIXERS = {
    "attention": _line("attention.Attention", 176, head_dim=32, max_tokens=128),
    "linear_attention": _line("linear_attention.LinearAttention", 176),
    "unit_linear": _line("linear_attention.LinearAttention", 168, feature_map="l2", denominator=False, output_norm=True,
                         conv=4),
    "based": _line("linear_attention.LinearAttention", 208, feature_map="taylor", key_dim=8, conv=4),
    "hedgehog": _line("linear_attention.LinearAttention", 152, feature_map="hedgehog"),
    "retention": _line("retention.Retention", 88, value_dim=64),
    "simple_gla": _line("simple_gla.SimpleGatedLinearAttention", 152),
    "gla": _line("gla.GLA", 168, key_dim=16),
    "mamba2": _line("mamba2.Mamba2", 104, heads=4),
    "hgrn2": _line("hgrn2.HGRN2", 176),
    "delta_net": _line("delta_net.DeltaNet", 168),
    "gated_delta_net": _line("gated_delta_net.GatedDeltaNet", 80, value_dim=64),
    "delta_product": _line("delta_product.DeltaProduct", 104),
    "kda": _line("kda.KDA", 128),
    "norm_attention": _line("norm_attention.NormAttention", 176),
    "diag_attention": _line("diag_attention.DiagAttention", 176, head_dim=32, block=32),
    "lightning": _line("lightning.LightningAttention", 168, layers=2),
    "mom": _line("mom.MoM", 160, heads=1, value_dim=32, memories=2, top_k=1),
    "hgrn": _line("hgrn.HGRN", 176, width=64),
    "mlgru": _line("mlgru.MLGRU", 176, width=64),
    "mamba": _line("mamba.Mamba", 88, channels=128),
    "gateloop": _line("gateloop.GateLoop", 112, heads=64, key_dim=1, value_dim=1),
    "s5": _line("s5.S5", 152, modes=64),
    "lru": _line("lru.LRU", 128, modes=64),
    "s4": _line("s4.S4", 176, channels=64, order=16, length=128),
    "s4d": _line("s4d.S4D", 184, channels=64, order=16),
    "lssl": _line("lssl.LSSL", 208, channels=64, order=16),
    "lmu": _line("lmu.LMU", 128, channels=16, order=16, theta=64.0),
    "lmuformer": _line("lmuformer.LMUFormer", 216, order=64, theta=64.0),
}
# The same mixers where their state has to change to be 16 KiB in a layer, to 5 %: two heads of 32 x 64 numbers,
# fewer where convolutions keep inputs as well. Retention and DiagAttention have that size above. HGRN, MLGRU, GateLoop,
# S5, LRU and the LMUs keep a vector: a state this large would leave no parameters for the rest.
AT_STATE = {
    "attention": _line("attention.Attention", 176, head_dim=32, window=33, max_tokens=32),
    "linear_attention": _line("linear_attention.LinearAttention", 136, value_dim=63),
    "unit_linear": _line("linear_attention.LinearAttention", 136, feature_map="l2", denominator=False, output_norm=True,
                         conv=4, key_dim=26, value_dim=64),
    "based": _line("linear_attention.LinearAttention", 216, feature_map="taylor", key_dim=8, value_dim=25, conv=4),
    "hedgehog": _line("linear_attention.LinearAttention", 160, feature_map="hedgehog", value_dim=31),
    "simple_gla": _line("simple_gla.SimpleGatedLinearAttention", 96, key_dim=26, value_dim=64),
    "gla": _line("gla.GLA", 80, value_dim=64),
    "mamba2": _line("mamba2.Mamba2", 104, heads=4, key_dim=28),
    "hgrn2": _line("hgrn2.HGRN2", 136, value_dim=64),
    "delta_net": _line("delta_net.DeltaNet", 136, key_dim=26, value_dim=64),
    "gated_delta_net": _line("gated_delta_net.GatedDeltaNet", 96, key_dim=26, value_dim=64),
    "delta_product": _line("delta_product.DeltaProduct", 40, key_dim=22, value_dim=64),
    "kda": _line("kda.KDA", 32, key_dim=26, value_dim=64),
    "norm_attention": _line("norm_attention.NormAttention", 136, value_dim=64),
    "lightning": _line("lightning.LightningAttention", 120, layers=2, value_dim=64),
    "mom": _line("mom.MoM", 144, heads=1, key_dim=24, value_dim=48, memories=2, top_k=1),
    "mamba": _line("mamba.Mamba", 64, channels=128, states=29),
    "s4": _line("s4.S4", 112, channels=64, order=64, length=128),
    "s4d": _line("s4d.S4D", 152, channels=64, order=64),
    "lssl": _line("lssl.LSSL", 176, channels=64, order=64),
}


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 128
  config.task.batch_size = 8 # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_attention.LinearAttention"
  config.model.mixer.heads = 2
  config.model.mixer.key_dim = 32
  config.model.mixer.value_dim = 32

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"
  config.model.channel.hidden = 176

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3
  config.optim.warmup = {"smoke": 5, "cpu": 30}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 300}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 64
  config.train.save_every = 300  # steps

  return config


def arms():
  return MIXERS | {f"{name}_state": line for name, line in AT_STATE.items()}


def measure(program, state) -> dict[str, float]:
  """Returns milliseconds per decoded token at the start of a text and 10,000 tokens later."""
  return program.decode_times(state)


def claims():
  common = dict(seeds=3, better="lower")
  loss = dict(common, metric="eval/loss", arm="gated_delta_net", margin="0.01 nats", match="parameters", year=2024,
              paper="Gated Delta Networks: Improving Mamba2 with Delta Rule")
  constant = dict(common, metric="decode/growth", kind="threshold", bound="1.2 times", year=2020,
                  paper="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
                  paper_value="constant time and memory per generated token (abstract)")
  return [
      Claim(id="decoding_takes_constant_time", **constant, arm="linear_attention",
            statement="After 10,000 tokens linear attention decodes one within 1.2 times the time at the start"),
      Claim(id="gated_delta_decodes_in_constant_time", **constant, arm="gated_delta_net",
            statement="After 10,000 tokens Gated DeltaNet decodes one within 1.2 times the time at the start"),
      Claim(id="gated_delta_beats_mamba2", **loss, against="mamba2",
            statement="Gated DeltaNet has a lower loss than Mamba-2 on bytes, at equal parameters",
            paper_value="1.3B: perplexity 16.42 against 16.56 on WikiText (unverified)"),
      Claim(id="gated_delta_beats_delta_net", **loss, against="delta_net",
            statement="Gated DeltaNet has a lower loss than DeltaNet on bytes, at equal parameters",
            paper_value="1.3B: perplexity 16.42 against 17.71 on WikiText (unverified)"),
  ]
