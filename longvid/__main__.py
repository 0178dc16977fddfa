"""``python -m longvid``."""

from longvid.cli import run

run()
