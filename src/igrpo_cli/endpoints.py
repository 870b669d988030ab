"""URLs of servers: what of one must stand in no file and in no message."""

from __future__ import annotations

import re

WITHOUT_SECRETS = "leave them out of the URL, for example http://node7:8000"

_CREDENTIALS = re.compile(r"""(?:(?<=//)|[^\s"'<>\[\]=/]+:(?!//))[^\s"'<>]*@""")
_QUERY = re.compile(r"""(//[^\s"'<>?#]*[?#])[^\s"'<>]*""")


def secret_in(endpoint: str) -> str | None:
    """Why `endpoint` may hold a secret, in words that do not repeat it; None where it holds none."""
    if "@" in endpoint:
        return f"the endpoint at {_host(endpoint.rpartition('@')[2])} carries credentials, which would end up in files"
    if "?" in endpoint or "#" in endpoint:
        return f"the endpoint {_host(endpoint)} has a query or a fragment, which would end up in files"
    return None


def without_secrets(text: str) -> str:
    """`text` with *** for the credentials and the query of every URL in it."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _host(endpoint: str) -> str:
    return re.split("[?#]", endpoint, maxsplit=1)[0]
