"""Exit codes of every command: an interface for launchers and sweeps."""

DONE = 0
CRASH = 1
CONFIG = 2  # the command or the config is wrong; trying again does not help
DIVERGED = 3  # non-finite numbers beyond patience; a post-mortem was saved
STALLED = 4  # no step for too long; all stacks were printed
CLAIM_FAILED = 10
INCONCLUSIVE = 11
PREEMPTED = 42  # stopped by a signal after a save: run the same command again
