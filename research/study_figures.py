"""The figures of a whole study, drawn by research.sweep and research.verify where its runs left what they show."""

import pathlib

from research import depth_by_arm, frontier, in_context_figures

KINDS = ("depth-*", "frontier-*", "in-context-*")  # their files in figures/


def draw(asked, found) -> list[pathlib.Path]:
  """Draws what the runs of a plan (research.plan.Plan) and their research.results.Results show; returns the files."""
  return [*frontier.draw(asked, found), *in_context_figures.draw(asked), *depth_by_arm.draw(asked, found)]
