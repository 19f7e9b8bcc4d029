"""Writes one HTML page about runs and sweeps: `python -m research.report DIR... [--out FILE]`.

The page holds its figures and asks the network for nothing. Runs that are not finished give a page too,
which says what is missing.
"""

import argparse
import contextlib
import pathlib
import sys

from research import exit_codes
from research.errors import ConfigError


class _Parser(argparse.ArgumentParser):
  """argparse, but a slip is one line."""

  def error(self, message):
    raise ConfigError(message)


def flags():
  parser = _Parser(prog="python -m research.report", description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("directory", nargs="+", metavar="DIR", help="of a run, of a group of seeds, or of a sweep")
  parser.add_argument("--out", default="", metavar="FILE",
                      help="the page; default DIR/report.html, and report.html for several directories")
  return parser


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given = flags().parse_args(sys.argv[1:] if argv is None else argv)
    from research import report_data, report_page
    directories = [pathlib.Path(text) for text in dict.fromkeys(given.directory)]
    studies = [report_data.read(directory) for directory in directories]
    out = pathlib.Path(given.out or (directories[0] / "report.html" if len(directories) == 1 else "report.html"))
    if out.is_dir():
      raise ConfigError(f"--out={given.out!r} is a directory; name a file in it, as in {str(out / 'report.html')!r}.")
    text = report_page.page(studies)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG
  except OSError as error:
    print(f"error: the page cannot be made: {error}.", file=sys.stderr)
    return exit_codes.CONFIG
  print(f"{out}: {len(text.encode()) / 1e6:.2f} MB, "
        f"{sum(len(arm.runs) for study in studies for arm in study.arms)} runs")
  return exit_codes.DONE


if __name__ == "__main__":
  with contextlib.suppress(BrokenPipeError):  # `| head` closes the pipe; that is no fault
    sys.exit(main())
