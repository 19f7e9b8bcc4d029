r"""How do the places of the norms decide what the residual stream and the gradients do by depth?

Twelve or twenty-four layers of softmax attention on real text, byte by byte, every kernel drawn with the same
deviation; arms with "xavier" draw as DeepNet does, so that placement and initialisation are crossed. "post_final" is
Post-LN with a norm before the head, and its "cold" arm has no warm-up. "begin/" is measured on the model before
training and "end/" after it: variance of the stream after the last layer, growth of that variance in training,
largest over smallest gradient norm of a layer. For Peri-LN "begin/increment_error" is by how much the mean square of
any token's increment differs from 1. Losses at 12 layers were claimed after those at 24 were known, with their margins.

    python -m research.verify depth_placement
    python -m research.run --config=experiments/depth_placement.py --config.model.placement=peri

cpu: 2 cores, 27 core minutes for its claims: 13 HOLDS, 5 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
DEEPNET = "DeepNet: Scaling Transformers to 1,000 Layers"
XIONG = "On Layer Normalization in the Transformer Architecture"
CURSE = "The Curse of Depth in Large Language Models"
PERI = "Peri-LN: Revisiting Layer Normalization in the Transformer Architecture"
MIX = "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN"
PAPER = CURSE


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 32 if small else 1024
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 24
  config.model.width = 32 if small else 768
  config.model.placement = "pre"
  config.model.embedding_std = 0.1 if small else 0.02

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 32 if small else 1024

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.init = ml_collections.ConfigDict()
  config.init.kernel = "normal"
  config.init.std = 0.1 if small else 0.02

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.warmup = {"smoke": 2, "cpu": 20, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 10, "cpu": 200, "paper": 20_000}[preset]
  config.optim.final = 0.1  # of lr
  config.optim.b2 = 0.95
  config.optim.clip = 0.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps
  config.train.diagnostics = True

  return config


def measure(program, state):
  """Returns numbers by depth of the model as it began and as it ended."""
  first, found = program.beginning(state), {}
  for name, of in (("begin", first), ("end", state)):
    profile = program.depth_profile(of)
    gradient = profile["gradient_norm"]
    found |= {f"{name}/variance": profile["residual_variance"][-1], f"{name}/gradient_spread": gradient.max() / gradient.min()}
  found["end/variance_growth"] = found["end/variance"] / found["begin/variance"]
  if program.config.model.placement == "peri":
    found["begin/increment_error"] = _increment_error(program, first)
  return found


def _increment_error(program, state):
  """Returns the largest | mean square - 1 | of what any sublayer adds to any token of a validation batch."""
  tokens_BT = program.task.batch("validation", 0)["inputs"]
  is_out_norm = lambda module, method: (module.name or "").endswith("out_norm")
  _, shown = program.model.apply({"params": state.params}, tokens_BT, capture_intermediates=is_out_norm,
                                 mutable=["intermediates"])
  waiting, worst = [shown], 0.0
  while waiting:
    node = waiting.pop()
    if hasattr(node, "values"):
      waiting += node.values()
    elif isinstance(node, tuple):
      waiting += node
    else:
      worst = max(worst, float(abs((node**2).mean(-1) - 1).max()))
  return worst


def arms():
  deep = {name: {"model.placement": place} for name, place in (
      ("pre_24", "pre"), ("lns_24", "layernorm_scaling"), ("peri_24", "peri"), ("mix_24", "mix"), ("post_24", "post"),
      ("post_final_24", "mix:24"))}
  cold = {"post_final_24_cold": deep["post_final_24"] | {"optim.warmup": 0}}
  xavier = {f"{name}_xavier_24": {"model.placement": place, "init.kernel": "xavier"}
            for name, place in (("pre", "pre"), ("deepnorm", "deepnorm"))}
  shallow = {name: {"model.placement": place, "model.depth": 12} for name, place in (
      ("pre_12", "pre"), ("lns_12", "layernorm_scaling"), ("peri_12", "peri"), ("mix_12", "mix"))}
  shallow |= {f"{name}_xavier_12": xavier[f"{name}_xavier_24"] | {"model.depth": 12} for name in ("pre", "deepnorm")}
  return deep | cold | xavier | shallow


def claims():
  loss = dict(metric="eval/loss", better="lower", seeds=5)
  curse, peri = dict(paper=CURSE, year=2025, seeds=5), dict(paper=PERI, year=2025, seeds=5)
  return [
      *(claim for layers in (24, 12) for claim in _losses(layers)),
      Claim(id="lns_begins_with_less_variance", **curse, kind="ratio", metric="begin/variance", better="lower", arm="lns_24",
            against="pre_24", bound="0.333 of the variance",
            statement="At initialisation LayerNorm Scaling leaves less than a third of Pre-LN's variance after 24 layers",
            paper_value="variance grows with depth in Pre-LN and is tamed by 1 / sqrt(l) (Figures 1 and 5, unverified digits)"),
      Claim(id="lns_ends_with_less_variance", **curse, kind="ratio", metric="end/variance", better="lower", arm="lns_24",
            against="pre_24", bound="0.333 of the variance",
            statement="After training LayerNorm Scaling has less than a third of Pre-LN's variance after 24 layers",
            paper_value="variance stays small throughout training (unverified digits)"),
      Claim(id="lns_begins_with_less_variance_at_12", **curse, kind="ratio", metric="begin/variance", better="lower",
            arm="lns_12", against="pre_12", bound="0.5 of the variance",
            statement="At initialisation LayerNorm Scaling leaves less than half of Pre-LN's variance after 12 layers",
            paper_value="log L instead of L (unverified digits)"),
      Claim(id="peri_adds_unit_vectors", **peri, kind="exact", metric="begin/increment_error", better="lower", arm="peri_24",
            bound="1e-3 mean square", statement="With gains of 1 every increment of a Peri-LN sublayer has mean square 1",
            paper_value="by construction (section 3)"),
      Claim(id="peri_variance_is_linear_in_depth", **peri, kind="ratio", metric="begin/variance", better="lower",
            arms=("peri_12", "peri_24"), scale=(12, 24), bound="1.1 slope",
            statement="At initialisation the variance of Peri-LN grows no faster than linearly in depth",
            paper_value="linear growth against exponential of Pre-LN (Table 1, unverified digits)"),
      Claim(id="peri_variance_grows_less_in_training", **peri, kind="ratio", metric="end/variance_growth", better="lower",
            arm="peri_24", against="pre_24", bound="0.5 of the growth",
            statement="Training multiplies the variance after the last layer by less than half as much in Peri-LN as in Pre-LN",
            paper_value="variance of Pre-LN explodes in training, that of Peri-LN does not (Figure 3, unverified digits)"),
      Claim(id="mix_has_flatter_gradients", paper=MIX, year=2024, seeds=5, kind="ratio", metric="end/gradient_spread", better="lower",
            arm="mix_24", against="pre_24", bound="0.8 of the spread",
            statement="After training Mix-LN's gradient norms differ less between layers than Pre-LN's",
            paper_value="gradient norms more uniform over layers (Figure 3, unverified digits)"),
      Claim(id="deepnorm_has_flat_gradients", paper=DEEPNET, year=2022, seeds=5, kind="ratio", metric="end/gradient_spread",
            better="lower", arm="deepnorm_xavier_24", against="post_24", bound="0.1 of the spread",
            statement="After training DeepNorm's gradient norms differ ten times less between layers than Post-LN's",
            paper_value="bounded updates in place of vanishing gradients (section 3)"),
      Claim(id="post_norm_needs_its_final_norm", paper=XIONG, year=2020, **loss, arm="post_final_24", against="post_24",
            margin="0.1 nats", statement="With a norm before the head Post-LN trains better, 24 layers",
            paper_value="gradients near the output are large in Post-LN and vanish below (section 3.3)"),
      Claim(id="deep_post_norm_needs_warmup", paper=XIONG, year=2020, **loss, arm="post_final_24",
            against="post_final_24_cold", margin="0.05 nats",
            statement="Warm-up lowers the loss of Post-LN with a final norm, 24 layers",
            paper_value="Post-LN fails without warm-up (Figure 2)"),
  ]


def _losses(layers: int):
  """The paired differences of the loss that the papers claim, at one depth."""
  common = dict(metric="eval/loss", better="lower", seeds=5)
  at = lambda name: f"{name}_{layers}"
  return [
      Claim(id=at("deepnorm_lowers_loss"), paper=DEEPNET, year=2022, **common, arm=at("deepnorm_xavier"),
            against=at("pre_xavier"), margin="0.02 nats",
            statement=f"DeepNorm has a lower loss than Pre-LN of the same initial deviations, {layers} layers",
            paper_value="better than Pre-LN at every depth that both train (Table 1, unverified digits)"),
      Claim(id=at("lns_lowers_loss"), paper=CURSE, year=2025, **common, arm=at("lns"), against=at("pre"),
            margin="0.01 nats", statement=f"LayerNorm Scaling has a lower loss than Pre-LN, {layers} layers",
            paper_value="perplexity 15.71 against 17.02 at 1B parameters"),
      Claim(id=at("peri_lowers_loss"), paper=PERI, year=2025, **common, arm=at("peri"), against=at("pre"),
            margin="0.01 nats", statement=f"Peri-LN has a lower loss than Pre-LN, {layers} layers",
            paper_value="lower loss at 400M to 3.2B parameters (Figure 4, unverified digits)"),
      Claim(id=at("mix_lowers_loss"), paper=MIX, year=2024, **common, arm=at("mix"), against=at("pre"),
            margin="0.01 nats", statement=f"Mix-LN has a lower loss than Pre-LN, {layers} layers",
            paper_value="perplexity 21.39 against 21.92 at 250M parameters (in the tables of LayerNorm Scaling)"),
  ]
