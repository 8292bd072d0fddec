"""Objects behind ``http://`` and ``https://`` URLs, as a stranger's table may name them.

No other scheme is followed, no redirect to another host, and no address of this machine or its network, unless the
caller allows that: a table must not make this program ask for what only this machine may see.
"""

from __future__ import annotations

import http.client
import ipaddress
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from featurecache.errors import InputError
from featurecache.sources.source import LEAST_RATE, PATIENCE, UNSETTLED_NS, Stamp

_TIMEOUT, _TRIES = 30.0, 3
_BLOCK = 1 << 16
_UNSETTLED_SECONDS = UNSETTLED_NS // 1_000_000_000
_AGENT = "featurecache"


def is_url(name: str) -> bool:
    """Tell whether a name is a URL of a server."""
    return name.lower().startswith(("http://", "https://"))


class _Refused(urllib.error.URLError):
    """What is not asked for."""


class _Connection(http.client.HTTPConnection):
    """Refuses an address that is not public."""

    def connect(self) -> None:
        super().connect()
        # By the socket: a name that is looked up twice may stand for another address the second time.
        address = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
        if not address.is_global:
            self.sock.close()
            raise _Refused(
                f"{self.host} is {address}, an address of this machine or its network; --allow-local-urls allows it"
            )


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same, with encryption."""


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


class _SameHost(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or after.hostname != before.hostname:
            raise _Refused(f"it redirects to {after.scheme}://{after.hostname}, another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class UrlReader:
    """Reads objects by their URLs; several threads may ask at once.

    Parameters
    ----------
    max_bytes : int
        Of a larger object no more is read.
    allow_local : bool
        Ask addresses of this machine and its network too.
    """

    def __init__(self, *, max_bytes: int, allow_local: bool = False) -> None:
        self._max_bytes = max_bytes
        handlers = [] if allow_local else [_Handler(), _SecureHandler()]
        # No proxy of the environment: it would be asked for what the address check is about.
        proxies = [] if allow_local else [urllib.request.ProxyHandler({})]
        self._opener = urllib.request.build_opener(_SameHost(), *proxies, *handlers)
        self._opener.addheaders = [("User-Agent", _AGENT)]

    def stamp(self, url: str) -> Stamp | None:
        """Return the stamp of an object; None where its server says nothing that changes with it.

        Raises
        ------
        InputError
            It is not there, or may not be asked for.
        """
        with self._asked(url, "HEAD") as response:
            return _stamp_of(response.headers)

    def read(self, url: str, *, stamp: Stamp | None = None) -> bytes:
        """Return the bytes of an object.

        Parameters
        ----------
        url : str
        stamp : Stamp, optional
            That it must still have.

        Raises
        ------
        InputError
            ``missing``, ``too_large``, ``changed`` or ``unreadable``.
        """
        for number in range(_TRIES):
            with self._asked(url, "GET") as response:
                if stamp is not None and _stamp_of(response.headers) != stamp:
                    raise InputError("changed", "the object was replaced while the run went on")
                try:
                    return self._body(response)
                except (OSError, http.client.HTTPException) as error:
                    reason = f"the connection ended: {type(error).__name__}: {error}"[:200]
            # A connection that was cut once may hold the next time.
            time.sleep(0.2 * 2**number)
        raise InputError("unreadable", reason)

    def _body(self, response: Any) -> bytes:
        """Return what an answer brings; raise `OSError` where it is cut, and `InputError` where it takes for ever."""
        started, data = time.monotonic(), bytearray()
        # One byte more than is allowed, to see that there are more.
        while block := response.read1(min(_BLOCK, self._max_bytes + 1 - len(data))):
            data += block
            if len(data) > self._max_bytes:
                raise InputError("too_large", f"the object has more than {self._max_bytes} bytes")
            # A server that sends a byte now and then never runs into the timeout of a socket.
            if (seconds := time.monotonic() - started) > PATIENCE + len(data) / LEAST_RATE:
                raise InputError("unreadable", f"it comes too slowly: {len(data)} bytes in {seconds:.0f} s")
        length = response.headers.get("Content-Length")
        if length is not None and length.isdecimal() and int(length) != len(data):
            raise OSError(f"{len(data)} of {length} bytes came")
        return bytes(data)

    def _asked(self, url: str, method: str) -> Any:
        if not is_url(url):
            raise InputError("unreadable", "only http and https URLs are followed")
        request = urllib.request.Request(url, method=method)
        for number in range(_TRIES):
            is_last = number == _TRIES - 1
            try:
                return self._opener.open(request, timeout=_TIMEOUT)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise InputError("missing", f"the server says {error.code}") from None
                # What a server refuses once it refuses again; its own faults may pass.
                if error.code < 500 or is_last:
                    raise InputError("unreadable", f"the server says {error.code} {error.reason}") from None
            except (_Refused, ValueError, http.client.InvalidURL) as error:
                raise InputError("unreadable", str(getattr(error, "reason", error))) from None
            except (OSError, http.client.HTTPException) as error:
                if isinstance(getattr(error, "reason", None), _Refused) or is_last:
                    reason = getattr(error, "reason", error)
                    raise InputError("unreadable", f"{type(reason).__name__}: {reason}"[:200]) from None
            time.sleep(0.2 * 2**number)
        raise AssertionError("unreachable")


def _stamp_of(headers: Any) -> Stamp | None:
    tags = [headers.get(name) for name in ("ETag", "Last-Modified")]
    length = headers.get("Content-Length")
    # A stamp begins with the size, by which large objects are left unread.
    if not any(tags) or length is None or not length.isdecimal():
        return None
    digest = sha256(repr(tags).encode()).digest()
    first, second, third = (int.from_bytes(digest[start : start + 7], "little") for start in (0, 7, 14))
    # Servers count in seconds: what was changed just now could change once more without another stamp.
    return int(length), first, -1 if _is_unsettled(headers) else second, third


def _is_unsettled(headers: Any) -> bool:
    """Tell, by the clock of its server alone, whether an object was changed within the last seconds."""
    try:
        now, changed = (parsedate_to_datetime(headers[name]) for name in ("Date", "Last-Modified"))
        return abs((now - changed).total_seconds()) <= _UNSETTLED_SECONDS
    except (TypeError, ValueError):  # one of them is not said, or no date
        return False
