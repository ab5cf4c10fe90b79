"""`python -m xnn` is the command `xnn`."""

from xnn.cli import main

main(prog_name="xnn")
