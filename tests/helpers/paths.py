"""Folders outside the package that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository
EMOJI = Path.home() / ".cache" / "tutelage" / "emoji"  # where .ci/run installs the npm packages of emoji
