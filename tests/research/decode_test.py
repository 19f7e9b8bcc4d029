"""What `measure` of an experiment may ask a program for: times of decoding, metrics of one model."""

import types

import pytest

from research import config as configs
from research import decode, program


def test_decoding_is_timed_early_and_late_in_one_text(monkeypatch):
  clock, calls = iter(range(10_000)), []

  def block(model, variables, token, states):
    calls.append(states)
    # One more tick inside the call from the sixth block on: these take twice the time.
    if len(calls) > 6:
      next(clock)
    return token, states + 1

  monkeypatch.setattr(decode, "block", block)
  monkeypatch.setattr(decode.time, "perf_counter", lambda: next(clock))
  program = types.SimpleNamespace(model=types.SimpleNamespace(init_state=lambda batch: 0))
  found = decode.times(program, types.SimpleNamespace(params={}, extra={}), until=2000)
  assert calls == [0, *range(2000 // decode.BLOCK + decode.BLOCKS)]  # the first call only compiles
  assert found == {"decode/ms": 1000 / decode.BLOCK, "decode/ms_late": 2000 / decode.BLOCK, "decode/growth": 2.0}


def test_one_model_is_measured_as_it_is_evaluated():
  config = configs.load("controls:smoke")[2]
  made = program.make(config)
  state = made.init(0)
  # As among others in one vmapped step, where `measure` gets the state of one.
  found = made._replace(seeds=2, evaluate=None).measured(state, limit=2)
  assert found == pytest.approx({k: float(v) for k, v in made.evaluated(state, 2).items()}, rel=1e-5)
