"""The page of a report, from folders written here: every number, nothing that would be fetched or run."""

import csv
import html.parser
import json
import math
import re

import numpy as np
import pytest

from research import claims, compare, judge, panels, report, report_data, report_page, report_svg, sweep_plots

EVIL = "</pre><script>alert(1)</script><img src=http://x.example/a.png onerror=alert(2)>"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
  """Text, tags and attributes of a page; raises at a tag that is closed wrongly."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.words = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    self.words.append(text)

  @property
  def text(self):
    return re.sub(r"\s+", " ", " ".join(self.words))


def write_run(at, seed, loss, steps=40, depth=0, samples="", **final):
  """Writes one finished run that ends at a loss."""
  at.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  lines = []
  for step in range(2, steps + 1, 2):
    now = loss + 2 * math.exp(-step / 8) + 0.02 * rng.standard_normal()
    lines.append({"step": step, "tokens": 256 * step, "loss": now, "tokens_per_s": 1e4 + step})
    if step % 10 == 0:
      lines.append({"step": step, "eval/loss": now})
  (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (at / "final.json").write_text(json.dumps({"step": steps, "eval/loss": loss, "skipped": 0, "params_sha256": "0" * 64,
                                             **final}))
  if samples:
    (at / "samples.txt").write_text(samples)
  if depth:
    grown = (loss * np.exp(np.arange(depth) / 2)).tolist()
    record = {"step": steps, "residual_variance": grown, "attention_entropy": ["nan", *grown[1:]], "update_norm": grown}
    (at / "depth.jsonl").write_text(json.dumps(record) + "\n")


def write_arm(at, **settings):
  at.mkdir(parents=True, exist_ok=True)
  config = {"seed": 0, "model": {"width": 64, "name": "lm.LM"}, "optim": {"lr": 0.01, "steps": 40}}
  (at / "config.json").write_text(json.dumps(config | settings))
  (at / "env.json").write_text(json.dumps({"python": "3.11.7", "jax": "0.10.2", "devices": ["cpu"], "commit": "abc123",
                                           "dirty": True}))
  (at / "model_table.csv").write_text("quantity,value,unit\nparameters,123456,\n"
                                      "decoding state,20996,bytes per sequence\n"
                                      "forward,261596,FLOPs per token\ntokens per step,256,\nsteps,40,\n")


def write_sweep(at, losses, seeds=5, depth=0, samples="", **more):
  """Writes a sweep; `losses` is arm -> final loss of each seed."""
  at.mkdir(parents=True, exist_ok=True)
  for i, (arm, of_seed) in enumerate(losses.items()):
    write_arm(at / "arms" / arm, model={"width": 64 + i, "name": "lm.LM"})
    for seed, loss in enumerate(of_seed):
      write_run(at / "arms" / arm / f"seed_{seed}", seed, loss, depth=depth, samples=samples)
  (at / "sweep.json").write_text(json.dumps({
      "config": "experiments/recall.py:cpu", "common": {}, "seeds": {arm: list(range(seeds)) for arm in losses},
      "arms": [{"name": arm, "overrides": {"model.width": 64 + i}, "config_id": "x"} for i, arm in enumerate(losses)],
      **more}))


def records(at, **changes):
  """Returns verdicts of every kind of claim, as research.verify writes them."""
  results = report_data.results(report_data.read(at))
  common = dict(paper="On Recall", year=2024, metric="eval/loss", better="lower", seeds=5, paper_value="0.2 (Table 1)")
  asked = [claims.Claim(id="b_gains", statement="b is lower", arm="b", against="a", margin="0.1 nats", **common),
           claims.Claim(id="a_low", statement="a comes low", kind="threshold", arm="a", bound="0.5 nats", **common),
           claims.Claim(id="order", statement="a, b, c", kind="monotone", arms=("a", "b", "c"), margin="0 nats",
                        **common),
           claims.Claim(id="slope", statement="falls", kind="ratio", arms=("a", "b", "c"), scale=(1, 2, 4),
                        bound="-0.1 slope", **common)]
  return [judge.as_record(judge.judge(claim, results)) | changes for claim in asked]


def rows_of(path):
  return list(csv.DictReader(path.read_text().splitlines()))


LOSSES = {"a": [2.0, 2.1, 1.9, 2.05, 1.95], "b": [1.51, 1.63, 1.37, 1.56, 1.44], "c": [2.0, 1.8, 2.2, 2.2, 1.7]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  at = tmp_path_factory.mktemp("report") / "recall" / "sweep"
  write_sweep(at, LOSSES, depth=4, samples="To be" + EVIL)
  (at / "verdict.json").write_text(json.dumps(records(at)))
  return at


@pytest.fixture(scope="module")
def text(sweep):
  assert report.main([str(sweep)]) == 0
  return (sweep / "report.html").read_text("utf-8")


def test_every_tag_is_closed_and_every_id_is_one_of_its_kind(text):
  page = Page(text)
  ids = [value for key, value in page.attributes if key == "id"]
  assert len(ids) == len(set(ids))
  assert {"html", "main", "header", "footer", "caption", "th", "svg", "figcaption"} <= set(page.tags)


def test_the_page_holds_the_numbers(text):
  page = Page(text)
  assert "3 arms, 15 runs, 15 of 15 finished" in page.text
  for number in ("2.000", "1.502", "1.980", "-0.498", "[-0.526, -0.470]",  # means, difference and its interval
                 "123,456", "20,996", "261,596", "25.55",  # model table; 256 tokens at 10,020 a second
                 "abc123", "dirty", "0.10.2", "0.2 (Table 1)", "5 of 5"):
    assert number in page.text, number
  described = " ".join(value for key, value in page.attributes if key == "aria-label")
  assert "eval/loss: a 2 [1.902, 2.098]; b 1.502" in described and "residual variance by layer: a 2 at" in described


def test_only_settings_that_differ_are_compared(text):
  page = Page(text)
  assert "model.width 64 65 66" in page.text
  assert "model.name" not in page.text


def test_nothing_is_fetched_and_nothing_runs(text):
  page = Page(text)
  policy, = (value for key, value in page.attributes if key == "content" and "default-src" in value)
  assert policy.startswith("default-src 'none'") and "script-src" not in policy and "http" not in policy
  assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(page.tags)
  assert not [key for key, _ in page.attributes if key.startswith("on")]
  for key, value in page.attributes:
    if key in ("src", "href", "xlink:href", "data", "action", "srcset"):
      assert value.startswith("#"), (key, value)
  assert set(re.findall(r"url\(\s*['\"]?(.)", text)) <= {"#"} and "@import" not in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  """A page whose every free text is markup."""
  at = tmp_path_factory.mktemp("hostile") / EVIL.replace("/", "_") / "sweep"
  write_sweep(at, {"a": [1.0, 2.0], "b": [1.5, 2.5]}, seeds=2, samples=EVIL, config=EVIL + ":cpu")
  write_arm(at / "arms" / "b", **{EVIL: EVIL, "optim": {"lr": EVIL}})
  (at / "arms" / "b" / "env.json").write_text(json.dumps({"python": EVIL, EVIL: [EVIL], "commit": EVIL}))
  for seed in (0, 1):
    run = at / "arms" / "b" / f"seed_{seed}"
    write_run(run, seed, 1.5 + seed, samples=EVIL + "\x00\ud7ff", **{f"eval/{EVIL} $x^": 1.0})
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, f"eval/{EVIL} $x^": 1.0}) + "\n")
  record = records_of(at)
  free = {key: EVIL for key in ("id", "statement", "paper", "paper_value", "sentence", "unit", "year", "verdict",
                                "margin", "metric")}
  (at / "verdict.json").write_text(json.dumps([record | free | {"arms": ["a", EVIL]}, {"id": EVIL}, EVIL]))
  assert report.main([str(at)]) == 0
  return (at / "report.html").read_text("utf-8")


def records_of(at):
  """Returns the verdict on one difference."""
  claim = claims.Claim(id="c", paper="P", year=2020, statement="s", metric="eval/loss", better="lower", arm="a",
                       against="b", margin="0 nats", seeds=2)
  return judge.as_record(judge.judge(claim, report_data.results(report_data.read(at))))


@pytest.mark.parametrize("change", [
    {"values": {"a": {"0": "x"}}}, {"arms": [["a"]]}, {"interval": ["0", 1]}, {"effect": EVIL}, {"scale": 3},
    {"seeds": 5},
    {"kind": "threshold", "bound": EVIL}, {"metric": 3}])
def test_a_verdict_of_the_wrong_form_is_a_note_and_no_crash(tmp_path, change):
  write_sweep(tmp_path, {"a": [1.0, 2.0], "b": [1.5, 2.5]}, seeds=2)
  (tmp_path / "verdict.json").write_text(json.dumps([records_of(tmp_path) | change]))
  study = report_data.read(tmp_path)
  assert not study.verdicts and "no verdict" in study.notes[0]


def test_hostile_text_stays_text(hostile):
  test_nothing_is_fetched_and_nothing_runs(hostile)
  page = Page(hostile)
  assert page.text.count("<script>alert(1)</script>") > 10 and "\x00" not in hostile
  assert "is no verdict" in page.text


@pytest.mark.parametrize("spread, says", [(0.01, True), (3.0, False)])
def test_a_word_of_praise_needs_an_interval_beyond_zero(tmp_path, spread, says):
  rng = np.random.default_rng(3)
  base = 2 + rng.standard_normal(5)
  write_sweep(tmp_path, {"a": base.tolist(), "b": (base - 0.1 + spread * rng.standard_normal(5)).tolist()})
  assert report.main([str(tmp_path)]) == 0
  assert ("better" in (tmp_path / "report.html").read_text()) == says


def test_holm_takes_back_what_one_arm_alone_would_be_granted():
  rng = np.random.default_rng(1)
  noise = rng.standard_normal((12, 5))
  values = {"base": {s: 0.0 for s in range(5)}, "gain": dict(enumerate([-1.0, -0.2, -0.9, -1.4, -0.4]))}
  alone = compare.differences(values, "base", "lower")["gain"]
  many = compare.differences(values | {f"n{i}": dict(enumerate(row)) for i, row in enumerate(noise)}, "base", "lower")
  assert alone.word == "better" and alone.interval == many["gain"].interval and many["gain"].interval[1] < 0
  assert many["gain"].p > 0.05 > alone.p and many["gain"].word == "no difference seen"


@pytest.mark.parametrize("metric, gain, word", [
    ("eval/loss", -1, "better"), ("eval/loss", 1, "worse"), ("eval/accuracy", 1, "better"),
    ("eval/accuracy", -1, "worse"), ("probe/rank", 1, "higher"), ("probe/rank", -1, "lower")])
def test_the_direction_of_a_metric_decides_the_word(metric, gain, word):
  values = {"a": {0: 0.0, 1: 0.1, 2: 0.0}, "b": {0: gain, 1: gain * 1.1, 2: gain * 1.05}}
  assert compare.differences(values, "a", compare.direction(metric))["b"].word == word


def test_pairs_are_the_seeds_that_both_arms_have():
  found = compare.differences({"a": {0: 1.0, 1: 2.0, 2: math.nan}, "b": {1: 5.0, 2: 1.0, 3: 9.0}}, "a")["b"]
  assert found.values == {1: 3.0} and found.interval is None and found.word == "1 pair: no interval"


def test_an_unfinished_sweep_says_what_is_missing(tmp_path):
  write_sweep(tmp_path, {"a": [1.0], "b": [2.0], "c": []}, seeds=2)
  (tmp_path / "arms/a/seed_1").mkdir()
  (tmp_path / "arms/a/seed_1/metrics.jsonl").write_text('{"step":2,"loss":3.5}\n{"step":4,"lo')
  (tmp_path / "arms/b/seed_1").mkdir()
  (tmp_path / "arms/b/seed_1/diverged.json").write_text('{"code": 3}')
  (tmp_path / "arms/b/config.json").write_text("{")
  assert report.main([str(tmp_path)]) == 0
  page = Page((tmp_path / "report.html").read_text()).text
  for line in ("a: seed 1 unfinished at step 2", "b: seed 1 diverged", "c: seeds 0, 1 not run", "unreadable",
               "6 runs, 2 of 6 finished"):
    assert line in page


def test_a_sweep_of_which_nothing_ran_has_a_page(tmp_path):
  write_sweep(tmp_path, {"a": [], "b": []}, seeds=2)
  for arm in ("a", "b"):
    (tmp_path / "arms" / arm / "config.json").unlink()
  assert report.main([str(tmp_path)]) == 0
  page = Page((tmp_path / "report.html").read_text()).text
  assert "4 runs, 0 of 4 finished" in page and "model.width 64 65" in page


@pytest.mark.parametrize("seeds", [0, 3])
def test_a_run_and_a_group_of_seeds_have_a_page(tmp_path, seeds):
  at = tmp_path / "parity" / "abc"
  write_arm(at)
  for seed in range(max(1, seeds)):
    write_run(at / f"seed_{seed}" if seeds else at, seed, 1.25 + seed / 8, samples=f"sample {seed}",
              **{"eval/accuracy": 0.5})
  assert report.main([str(at)]) == 0
  page = Page((at / "report.html").read_text()).text
  assert "parity/abc" in page and "sample 0" in page and "sample 1" not in page
  assert ("1.375" if seeds else "1.250") in page and "optim.lr 0.01" in page
  assert (f"{seeds} of {seeds} finished" if seeds else "One run: finished") in page


def test_several_directories_share_a_page_and_a_table(tmp_path, sweep):
  write_arm(tmp_path / "one")
  write_run(tmp_path / "one", 0, 0.875)
  assert report.main([str(sweep), str(tmp_path / "one"), f"--out={tmp_path / 'both.html'}"]) == 0
  page = Page((tmp_path / "both.html").read_text())
  table = page.text.partition("Final metrics of all studies")[2].partition("Verdicts")[0]
  assert all(number in table for number in ("2.000", "1.502", "0.875", "5 of 5", "1 of 1"))
  assert page.tags.count("section") == 2


@pytest.mark.parametrize("make, says", [
    (lambda at: at / "none", "is no directory"), (lambda at: at, "neither a run (config.json) nor a sweep"),
    (lambda at: write_arm(at / "recall" / "run") or at, "recall/run: name one of these")])
def test_a_folder_without_results_is_one_line_and_exit_2(tmp_path, capsys, make, says):
  assert report.main([str(make(tmp_path))]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and says in error
  assert not list(tmp_path.glob("**/*.html"))


@pytest.mark.parametrize("argv", [[], ["--ot=x", "y"], ["y", "--out"]])
def test_a_wrong_flag_is_one_line_and_exit_2(argv, capsys):
  assert report.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1


def test_a_seed_that_stops_early_leaves_the_others_their_curve():
  line = panels.line([[(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 4.0), (3, 5.0), (4, math.nan)]])
  np.testing.assert_array_equal(line.x, [1, 2, 3, 4])
  np.testing.assert_array_equal(line.mean, [2, 3, 5, math.nan])
  np.testing.assert_array_equal(line.low, [1, 2, 5, math.nan])
  assert panels.line([[], []]) is None


def test_a_long_curve_keeps_its_extremes():
  y = np.zeros(6_000)
  y[1234] = 7.0
  line = panels.line([list(enumerate(y))])
  assert len(line.x) <= panels.POINTS and line.high.max() == 7.0 and line.low.max() == 0.0
  np.testing.assert_allclose(line.mean.sum() * 6_000 / len(line.mean), 7.0)


def test_axes_are_logarithmic_only_where_the_numbers_span_much():
  assert panels.wants_log(np.geomspace(1, 1e3, 50)) and not panels.wants_log(np.linspace(1, 3, 50))
  assert not panels.wants_log([-1, 1e3]) and not panels.wants_log([math.nan]) and not panels.wants_log([])


def test_arms_differ_in_color_or_dash_and_mark():
  looks = [str(panels.PRINT.of(i)) for i in range(32)]
  assert len(set(looks)) == 32
  for what in ("color", "marker"):
    assert len({panels.PRINT.of(i)[what] for i in range(8)}) == 8


def test_what_a_figure_says_is_not_rounded_with_its_coordinates():
  drawn = report_svg.panel(lambda axes: axes.set_xticks([1 / 3], ["0.04558"]), "ticks")
  assert ">0.04558<" in drawn and not re.search(r'[ "]\d+\.\d{3}', drawn.partition("viewBox")[2])


def test_every_kind_of_claim_has_a_figure_with_its_numbers(tmp_path, sweep):
  for record in records(sweep):
    path = tmp_path / f"{record['id']}.png"
    sweep_plots.claim_figure(json.loads(json.dumps(record)), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    rows = rows_of(path.with_suffix(".csv"))
    assert {(row["arm"], row["seed"]): float(row["eval/loss"]) for row in rows} == {
        (arm, seed): value for arm, of_seed in record["values"].items() for seed, value in of_seed.items()}


def test_a_verdict_without_values_has_a_figure(tmp_path, sweep):
  sweep_plots.claim_figure(records(sweep, values={})[0], tmp_path / "x.png")
  assert (tmp_path / "x.csv").read_text() == "arm,scale,seed,eval/loss\n"


def test_figures_of_a_sweep_have_their_numbers_beside_them(tmp_path, sweep):
  study = report_data.read(sweep)
  sweep_plots.finals(report_data.results(study), tmp_path / "finals.png")
  rows = [row for row in rows_of(tmp_path / "finals.csv") if row["what"] == "value"]
  assert [float(row["value"]) for row in rows if row["arm"] == "b"] == LOSSES["b"]
  runs = {arm.name: [run.records for run in arm.runs] for arm in study.arms}
  sweep_plots.curves(runs, tmp_path / "c.png", metric="eval/loss")
  rows = [row for row in rows_of(tmp_path / "c.csv") if row["arm"] == "a"]
  assert [float(row["step"]) for row in rows] == [10, 20, 30, 40] and {row["seeds"] for row in rows} == {"5"}
  want = np.mean([r["eval/loss"] for of_seed in runs["a"] for r in of_seed if r["step"] == 40 and "eval/loss" in r])
  np.testing.assert_allclose(float(rows[-1]["mean"]), want)


def test_the_same_results_give_the_same_page(sweep, text):
  again = report_page.page([report_data.read(sweep)])
  assert re.sub(r"Made [^<]*", "", again) == re.sub(r"Made [^<]*", "", text)
