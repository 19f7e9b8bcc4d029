"""`python -m research` lists the commands, one line each."""

VERBS = {
    "research.run": "train, evaluate and sample one experiment; with no arguments, the main job",
    "research.sweep": "compare arms over seeds, paired: --vary=\"model.placement=pre,post\" --seeds=0:5",
    "research.verify": "judge the claims of papers: HOLDS, FAILS or INCONCLUSIVE, with intervals",
    "research.convert": "rewrite a finished run as an equal model: --from RUN --to pre_crms_norm",
    "research.grow": "a deeper or wider run that starts from a run's checkpoint: --from=RUN --operator=stack",
    "research.in_context_table": "closed forms, draws and trained layers of in-context regression in one table",
    "research.mixer_times": "every token mixer, forward and backward, against its own kernel and linear maps",
    "research.report": "one HTML page about runs and sweeps: curves with bands, tables, samples",
}


def main():
  print("usage: python -m research.VERB --help")
  for verb, line in VERBS.items():
    print(f"  {verb:<26} {line}")


if __name__ == "__main__":
  main()
