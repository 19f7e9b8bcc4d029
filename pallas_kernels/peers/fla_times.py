"""Times flash-linear-attention (Triton kernels under torch), in a process of its own.

    python -m pallas_kernels.peers.fla_times FOLDER        started by  python -m pallas_kernels.bench --peers

Nothing of the project imports this module's function; it is the only place where torch is loaded.
Never run: no machine with torch, flash-linear-attention and a GPU was at hand.
"""

from pallas_kernels.peers import protocol


def main():
  import torch
  from fla.ops.delta_rule import chunk_delta_rule
  from fla.ops.gated_delta_rule import chunk_gated_delta_rule
  from fla.ops.gla import chunk_gla
  from fla.ops.kda import chunk_kda
  from fla.ops.simple_gla import chunk_simple_gla

  if not torch.cuda.is_available():
    raise SystemExit("torch sees no CUDA device")
  kernels = {"none": chunk_simple_gla, "scalar": chunk_simple_gla, "vector": chunk_gla,
             "none delta": chunk_delta_rule, "scalar delta": chunk_gated_delta_rule, "vector delta": chunk_kda}

  def prepare(arrays, rule, dtype):
    put = lambda name, x: torch.tensor(x, device="cuda", dtype=_dtype(torch, name, dtype))
    tensors = {name: put(name, x) for name, x in arrays.items()}
    do = tensors.pop("do")
    wanted = {name: x.requires_grad_() for name, x in tensors.items()}

    def forward():
      with torch.no_grad():
        kernels[rule](**tensors)
      torch.cuda.synchronize()

    def train(values=False):
      o = kernels[rule](**tensors)[0]
      gradients = torch.autograd.grad(o, list(wanted.values()), do.to(o.dtype))
      torch.cuda.synchronize()
      if values:
        give = lambda x: x.detach().float().cpu().numpy()
        return give(o), dict(zip(wanted, map(give, gradients)))

    return dict(forward=forward, train=train)

  protocol.serve(torch.cuda.get_device_name(), prepare)


def _dtype(torch, name, dtype):
  return torch.float32 if name in ("g", "beta") else getattr(torch, dtype)


if __name__ == "__main__":
  main()
