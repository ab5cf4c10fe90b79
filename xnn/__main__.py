"""`python -m xnn` is the command `xnn`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Ctrl-C while modules are imported ends it without a traceback."""
    try:
        from xnn.cli import main as command

        command(prog_name="xnn")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
