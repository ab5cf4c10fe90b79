"""Names of test cases."""

import re

__all__ = ["plain"]


def plain(value):
    """str(value) without addresses: a case then has the same name in each process that collects the tests.

    >>> plain([object, repr(object())])
    "[<class 'object'>, '<object object>']"
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
