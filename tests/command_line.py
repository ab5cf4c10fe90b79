"""What the tests of commands share."""

from click.testing import CliRunner

from xnn.cli import main


def run(*args):
    """The command in this process; an exception that would be a traceback is raised."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
