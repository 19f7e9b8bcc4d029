"""The grammar of overrides: types stay, unknown things are refused with the nearest name."""

import time

import ml_collections
import pytest

from research import config as configs
from research.errors import ConfigError
from tests.research import toy


@pytest.mark.parametrize("key, text, value", [
    ("optim.steps", "7", 7), ("optim.lr", "1e-4", 1e-4), ("optim.lr", "2", 2.0),
    ("model.placement", "post", "post"), ("model.pattern", "mixer, mixer", ("mixer", "mixer")),
    ("model.pattern", "('mixer',)", ("'mixer'",)), ("model.scan", "False", False), ("model.tied", "1", True),
    ("optim.betas", "0.5,0.6", (0.5, 0.6)), ("seed", "3", 3)])
def test_a_value_keeps_the_type_of_its_leaf(key, text, value):
  config = toy.config(**({"optim__name": "prodigy"} if "betas" in key else {}))
  configs.override(config, {key: text})
  node, _, leaf = key.rpartition(".")
  got = (config[node] if node else config)[leaf]
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize("key, value, says", [
    ("optim.stesp", "1", "did you mean 'steps'"), ("optmi.steps", "1", "did you mean 'optim'"),
    ("optim.steps", "1.5", "a whole number"), ("optim.steps", 1.5, "a whole number"),
    ("optim.lr", "nan", "float32 holds"), ("optim.lr", "1e39", "float32 holds"),
    ("optim.lr", None, "float32 holds"), ("model.tied", "perhaps", "true or false"),
    ("model.tied", 1, "true or false"), ("optim", "1", "is a section"), ("seed.x", "1", "is a value"),
    ("model.mixer.hedas", "1", "did you mean 'heads'"), ("", "1", "unknown key"), ("model.", "1", "unknown key")])
def test_what_does_not_fit_is_refused_with_key_value_and_rule(key, value, says):
  with pytest.raises(ConfigError, match=says) as refused:
    configs.override(toy.config(), {key: value})
  assert f"config.{key}" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["os.system", "../x", "a.B" * 1000, "layers.Stack", "scalar_decay.math", "", "\0", 7])
@pytest.mark.parametrize("key", ["model.name", "model.mixer.name", "task.name", "model.norm.name"])
def test_a_hostile_name_is_refused_at_once(key, name):
  begun = time.process_time()
  with pytest.raises(ConfigError) as refused:
    configs.override(toy.config(), {key: name})
  assert len(str(refused.value)) < 600 and time.process_time() - begun < 0.5


def test_another_name_drops_the_keys_that_its_class_lacks_and_opens_its_own():
  config = toy.config()
  notes = configs.override(config, {"model.mixer.window": "5", "model.mixer.name": "attention.Attention"})
  assert config.model.mixer.to_dict() == dict(name="attention.Attention", heads=2, window=5)
  assert len(notes) == 1 and "config.model.mixer.key_dim, config.model.mixer.value_dim" in notes[0]


def test_a_layer_that_the_file_left_at_its_default_is_chosen_by_name():
  config = configs.load("byte_lm:smoke")[2]
  configs.override(config, {"model.channel.router.name": "deepseek.DeepSeek", "model.channel.name": "moe.MoE",
                            "model.channel.router.top_k": "3", "model.policy.name": "p_mod.PMoD"})
  assert config.model.channel.router.to_dict() == {"name": "deepseek.DeepSeek", "top_k": 3}
  assert config.model.policy.name == "p_mod.PMoD"
  for key in ("model.norm.router.name", "model.channel.norm.name", "task.policy.name", "model.channel.router.gate.name"):
    with pytest.raises(ConfigError, match=f"config.{key}.*has no section"):
      configs.override(config, {key: "deepseek.DeepSeek"})


def test_another_optimizer_drops_the_arguments_that_it_lacks():
  config = toy.config()
  configs.override(config, {"optim.weight_decay": "0.1"})
  assert configs.override(config, {"optim.name": "adam"}) == ["adam has no config.optim.weight_decay: left out."]


@pytest.mark.parametrize("key, value", [("mesh.fsdp", 2), ("train.keep", 3), ("init.residual", "scaled"),
                                        ("sample.tokens", 5), ("model.remat", "full")])
def test_a_section_with_defaults_need_not_stand_in_the_file(key, value):
  config = toy.config()
  configs.override(config, {key: str(value)})
  section, leaf = key.split(".")
  assert config[section][leaf] == value


def test_a_setting_without_a_default_can_be_set_and_leaves_other_configs_their_id():
  config, plain = toy.config(), toy.config()
  configs.override(config, {"optim.trainable": "norm", "optim.rescale_every": "50", "optim.rescale_target": "1"})
  assert (config.optim.trainable, config.optim.rescale_every, config.optim.rescale_target) == ("norm", 50, 1.0)
  assert "trainable" not in plain.optim and configs.id_of(config) != configs.id_of(plain)


def test_equal_configs_have_equal_ids_whatever_the_order():
  config = toy.config()
  again = ml_collections.ConfigDict(dict(reversed(list(config.to_dict().items()))))
  assert configs.id_of(again) == configs.id_of(config) and len(configs.id_of(config)) == 12


def test_the_id_follows_what_is_trained_and_nothing_else():
  name = lambda **changed: configs.id_of(toy.config(**changed))
  assert name() == name(mesh__fsdp=2) == name(sample__tokens=5, sample__prompt="x")
  assert len({name(), name(optim__lr=0.5), name(seed=1), name(model__width=8), name(task__seed=1)}) == 5
