"""Every notebook runs, finds what it says, and is the same text as script and as .ipynb."""

import json
import os
import pathlib
import re
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "research" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def _notebook(script):
  """Returns the .ipynb of a percent script: what jupytext makes of it, without outputs."""
  _, *parts = re.split(r"^# %%( \[markdown\])?\n", script.read_text("utf-8"), flags=re.MULTILINE)
  cells = []
  for kind, text in zip(parts[::2], parts[1::2]):
    text = text.strip("\n")
    if kind:
      text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    cell = {"cell_type": "markdown" if kind else "code", "id": f"cell-{len(cells)}", "metadata": {},
            "source": text.splitlines(keepends=True)}
    cells.append(cell if kind else cell | {"execution_count": None, "outputs": []})
  kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
  return {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
          "nbformat": 4, "nbformat_minor": 5}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_its_script(script):
  path = script.with_suffix(".ipynb")
  if os.environ.get("STRATA_UPDATE_GOLDEN"):
    path.write_text(json.dumps(_notebook(script), indent=1, ensure_ascii=False) + "\n", "utf-8")
  assert json.loads(path.read_text("utf-8")) == _notebook(script), (
      f"{path.name} is not what its script makes; run this test with STRATA_UPDATE_GOLDEN=1 and commit the file.")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_first_cell_installs_only_what_cannot_be_imported(script):
  first, = [c for c in _notebook(script)["cells"] if c["cell_type"] == "code"][:1]
  lines = "".join(first["source"]).splitlines()
  guard = next(i for i, line in enumerate(lines) if line.startswith("if importlib.util.find_spec("))
  assert any("pip" in line for line in lines[guard:]) and not any("pip" in line for line in lines[:guard])
  assert all(line.startswith("  ") for line in lines[guard + 1:] if line.strip())


def test_a_trained_layer_of_the_notebook_is_near_a_gradient_step(monkeypatch):
  import matplotlib
  import matplotlib.pyplot as plt
  monkeypatch.setattr(matplotlib, "use", lambda *args: None)
  plt.switch_backend("agg")
  monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
  monkeypatch.setenv("STRATA_NOTEBOOK", "small")
  found = runpy.run_path(str(FOLDER / "gradient_descent_by_attention.py"))
  assert abs(found["EXCESS"]) < 0.3 and found["COSINE"] > 0.95
  assert max(found["distance"]) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs_in_a_kernel(script, monkeypatch):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  monkeypatch.setenv("STRATA_NOTEBOOK", "small")
  monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
  notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
  nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}}).execute()
