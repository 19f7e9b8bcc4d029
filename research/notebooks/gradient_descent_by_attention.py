# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A transformer layer is a step of gradient descent
#
# Show a linear self-attention layer prompts of ten pairs (x, y) of a linear function that changes from prompt to
# prompt, and let it predict y at one more x. Nobody tells it how. Below several such layers are trained, side by
# side, from different random starts; then each is held against one step of gradient descent on the loss
#
# $$\frac{1}{2n} \sum_i (w \cdot x_i - y_i)^2, \qquad w = 0 \;\to\; w = \frac{\eta}{n} \sum_i y_i x_i .$$
#
# They turn out to be the same function: the same loss, the same weights, the same gradient in the query.
#
# von Oswald et al., "Transformers learn in-context by gradient descent", 2023.

# %%
# Nothing is installed where the laboratory can be imported already. Elsewhere, as on Colab, set REPOSITORY to the
# address that this notebook was opened from, "git+https://...".
import importlib.util
import subprocess
import sys

REPOSITORY = ""
if importlib.util.find_spec("research") is None:
  if not REPOSITORY:
    raise ValueError("REPOSITORY='' must be the address of the repository where it is not installed; set it above.")
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", REPOSITORY], check=True)

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from layers.in_context import closed_forms, constructions, probes, prompts
from layers.in_context import linear_self_attention as lsa
from research import in_context_training as training

SMALL = os.environ.get("STRATA_NOTEBOOK") == "small"  # what the tests run
SEEDS = 2 if SMALL else 5
D, N = (3, 6) if SMALL else (10, 10)  # inputs and pairs
STEPS, BATCH = (800, 64) if SMALL else (1500, 512)
TEST = 2000 if SMALL else 20_000  # fresh prompts
VARIANCE, KURTOSIS = 1 / 12, 1.8  # of inputs uniform on (-1/2, 1/2)

# %% [markdown]
# ## Train
#
# A layer has four square matrices: keys, queries, values and an output. All seeds train in one compiled program.

# %%
layer = lsa.LinearSelfAttention(form="four", keys="context", init_scale=1.0 if SMALL else 0.002)
trained = training.train(layer, training.Settings(seed=np.arange(SEEDS), lr=0.03 if SMALL else 3e-3), d=D, n=N,
                         steps=STEPS, batch=BATCH, coordinates="uniform")
eta = closed_forms.one_step_rate(N, D, variance=VARIANCE, kurtosis=KURTOSIS)
best_risk = closed_forms.one_step_risk(N, D, variance=VARIANCE, kurtosis=KURTOSIS)
print(f"best rate of one step {eta:.4f}, its risk {best_risk:.5f}")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
window = max(1, STEPS // 30)
for curve in 2 * trained.loss_MS:
  axes.plot(np.arange(window, STEPS + 1), np.convolve(curve, np.ones(window) / window, "valid"), linewidth=1)
axes.axhline(best_risk, color="black", linestyle="--", label="one gradient step, in closed form")
axes.set(xlabel="step", ylabel="squared error", title="Every seed comes down to the loss of one gradient step")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Compare
#
# On fresh prompts, the same for all: the risk, the distance of predictions, and the gradient of the prediction in
# the query, which for gradient descent is the vector of weights itself.

# %%
drawn = jax.jit(lambda key: prompts.draw(jax.random.split(key, TEST), prompts.law(D), n=N, coordinates="uniform"))(
    jax.random.key(10**6))
tokens = prompts.concatenated(drawn)
step_PD = eta / N * np.einsum("pn,pnd->pd", drawn.y_BN, drawn.x_BND)
step_P = np.sum(step_PD * drawn.query_BD, axis=1)
target_P = np.asarray(drawn.target_B)


@jax.jit
def compared(params):
  answer = lambda tokens: training.answers(layer, params, tokens)
  return answer(tokens), probes.sensitivity(answer, tokens)


rows = []
for seed in range(SEEDS):
  answer_P, slope_PD = map(np.asarray, compared(jax.tree.map(lambda p: p[seed], trained.params)))
  risk = best_risk + np.mean((answer_P - target_P) ** 2 - (step_P - target_P) ** 2)
  rows.append((float(risk) / best_risk - 1, probes.cosine(slope_PD, step_PD), probes.alignment(answer_P, step_P)))
print("seed   excess risk   cosine of sensitivities   E |difference of predictions|")
for seed, (excess, cosine, difference) in enumerate(rows):
  print(f"{seed:4}   {excess:10.2%}   {cosine:23.4f}   {difference:29.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
first_P, _ = compared(jax.tree.map(lambda p: p[0], trained.params))
left.plot(step_P[:500], np.asarray(first_P)[:500], ".", markersize=3)
left.axline((0, 0), slope=1, color="black", linewidth=0.8)
left.set(xlabel="one gradient step", ylabel="trained layer", title="Predictions, seed 0")
for at, name in enumerate(("excess risk", "1 - cosine", "difference")):
  values = [abs(1 - row[1]) if at == 1 else abs(row[at]) for row in rows]
  right.plot([at] * SEEDS, values, "o", alpha=0.7)
right.set_xticks(range(3), ("excess risk", "1 - cosine", "difference"))
right.set(yscale="log", title="Distance from a gradient step, a dot per seed")
plt.show()

# %% [markdown]
# ## Look inside
#
# The four matrices are only known up to factors that move between them; the two products $W_K^T W_Q$ and $P W_V$
# can be compared. Of these only some entries reach the prediction: the last row of $P W_V$, which writes where y
# stands, and the columns of $W_K^T W_Q$ that meet the x of the query. On the right are those of the construction: a
# multiple of the identity that compares x with x, and one entry that carries y.


# %%
def products(params):
  """Returns the parts of the two products that are read, with the factor between them spread evenly."""
  pv_DD, kq_DD = (np.asarray(m, np.float64) for m in lsa.products(params, "four", D + 1))
  pv_1D, kq_Dd = pv_DD[-1:], kq_DD[:, :-1]
  factor = np.sqrt(np.linalg.norm(pv_1D) / np.linalg.norm(kq_Dd)) * np.sign(-pv_1D[0, -1])
  return pv_1D / factor, kq_Dd * factor


written = constructions.kernels(constructions.gradient_step(D, N, eta))
first = products(jax.tree.map(lambda p: p[0], trained.params))
exact = products(jax.tree.map(jnp.asarray, written))
distance = [probes.product_distance(products(jax.tree.map(lambda p: p[seed], trained.params)), exact)
            for seed in range(SEEDS)]
print("relative distance of the weights from the construction:", ", ".join(f"{x:.3f}" for x in distance))
figure, grid = plt.subplots(2, 2, figsize=(7.5, 5), layout="constrained", height_ratios=(1, 4))
for row, name in enumerate(("last row of $P W_V$", "$W_K^T W_Q$, x of the query")):
  size = np.abs(exact[row]).max()
  for axes, matrix, who in zip(grid[row], (first[row], exact[row]), ("trained, seed 0", "constructed")):
    image = axes.imshow(matrix, cmap="RdBu", vmin=-size, vmax=size)
    axes.set_title(f"{name}, {who}")
  figure.colorbar(image, ax=grid[row])
plt.show()

# %% [markdown]
# ## Judge
#
# The bounds are those of the claims in `experiments/gd_by_attention.py`, which `python -m research.verify
# gd_by_attention` judges over five seeds.

# %%
EXCESS, COSINE = max(row[0] for row in rows), min(row[1] for row in rows)
print(f"largest excess {EXCESS:.2%}, below 1 %: {EXCESS < 0.01}")
print(f"least cosine {COSINE:.4f}, above 0.995: {COSINE > 0.995}")
