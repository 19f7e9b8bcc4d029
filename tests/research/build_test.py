"""From config to model: the pattern repeats, and what does not fit says what would."""

import pytest

from research import build
from research import config as configs
from research.errors import ConfigError
from tests.research import toy


def _model(config):
  return build.model_of(config, build.task_of(config), train=True)


def test_the_pattern_repeats_until_depth_is_reached():
  config = configs.load("byte_lm:smoke")[2]
  configs.override(config, {"model.depth": 6, "model.pattern": ("mixer", "attention", "mixer")})
  stack = _model(config).stack(parent=None)
  names = [factory.func.__name__ for factory in stack.mixers]
  one, other = "SimpleGatedLinearAttention", "Attention"
  assert names == [one, other, one, one, other, one]
  assert stack.mixers[0] is stack.mixers[2]  # equal layers can be scanned


@pytest.mark.parametrize("override, says", [
    ({"model.pattern": "mixer,mixr"}, r"config\.model\.pattern=.*config\.model\.mixr; did you mean 'mixer'"),
    ({"model.pattern": ","}, "at least one mixer node"),
    ({"model.depth": "0"}, "config.model.depth=0 must be from 1"),
    ({"model.width": "0"}, "config.model.width=0 must be at least 1"),
    ({"model.dropout": "1.0"}, "config.model.dropout=1.0"),
    ({"model.remat": "al"}, "config.model.remat='al'"),
    ({"model.placement": "mix:9"}, "config.model.placement='mix:9'"),
    ({"model.name": "classifier.Classifier"}, "take config.model.name=lm.LM"),
    ({"model.scan": "false", "model.depth": "500"}, "500 layers that no scan can share")])
def test_what_does_not_fit_is_refused_with_the_way_out(override, says):
  config = toy.config()
  configs.override(config, override)
  with pytest.raises(ConfigError, match=says):
    _model(config)


def test_train_reaches_the_stack():
  config = toy.config()
  task = build.task_of(config)
  for train in (True, False):
    assert build.model_of(config, task, train=train).stack(parent=None).train is train


@pytest.mark.parametrize("override, says", [
    ({"model.channel.router.top_k": "9"}, r"config\.model\.channel\.router\.top_k=9 must be from 1 to experts=8"),
    ({"model.channel.router.name": "gshard.Gshard"}, r"router\.name='gshard\.Gshard' is no class under layers/moe/"),
    ({"model.channel.capacity_factor": "0", "model.channel.dispatch": "capacity"}, r"config\.model\.channel\.capacity_factor=0")])
def test_a_part_of_a_layer_is_refused_under_its_own_key(override, says):
  config = configs.load("moe_balance:smoke")[2]
  with pytest.raises(ConfigError, match=says):
    configs.override(config, override)
    _model(config)
    build.check_layers(config, 64)
