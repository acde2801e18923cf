"""Address: how the address of a file is shown, in errors, in notices and on the disk."""

import re

_USER = re.compile(r"^([A-Za-z][\w+.-]*://)?[^/]*@")


def shown(url: str) -> str:
    """Return an address without what may be secret: a user and password, and all from the question mark on."""
    return _USER.sub(lambda found: found[1] or "", re.split("[?#]", url, maxsplit=1)[0])
