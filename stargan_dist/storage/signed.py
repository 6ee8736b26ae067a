"""Cheap reads of ranges of S3 objects: many ranges of an object with one signed URL.

s3fs takes ten times as long for a request as plain HTTP (benchmarks/request_cost.py), because
botocore builds, signs and parses each one anew, and it has 10 connections. A URL that is signed
once serves any range of its object for minutes, and is read by plain HTTP (plain_http.py). s3fs
signs it, with its own endpoint, region and credentials.
"""

import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stargan_dist.storage import plain_http

VALID_SECONDS = 3600
KEPT_SECONDS = 300  # botocore renews credentials earlier than this before they expire
REFUSED_SECONDS = 60
MAX_URLS = 2**14


class _SignedUrl(NamedTuple):
    text: str  # empty: s3fs reads the object
    until: float  # time.monotonic()


_urls: dict[tuple[Any, str], _SignedUrl] = {}  # by filesystem and path; valid in a forked process


async def read_range(fs: Any, path: str, start: int, end: int) -> bytes:
    """Read the bytes [start, end) of an object of an s3fs filesystem, possibly fewer or more.

    s3fs reads what cannot be read with a signed URL: it knows encryption keys, requester-pays,
    certificates, proxies, and the regions of buckets.

    Raises:
        OSError and others: as s3fs does.
    """
    refused = False
    try:
        if url := await _signed_url(fs, path):
            return await plain_http.read_range(url, start, end, is_signed=True)
    except Exception:
        refused = True
    data: bytes = await fs._cat_file(path, start=start, end=end)
    if refused:  # and not missing, for example
        _keep(fs, path, "", REFUSED_SECONDS)
    return data


async def _signed_url(fs: Any, path: str) -> str:
    """Return a signed URL of an object; empty if s3fs should read it."""
    known = _urls.get((fs, path))
    if known is None or known.until <= time.monotonic():
        known = _keep(fs, path, await _sign(fs, path), KEPT_SECONDS)
    return known.text


def _keep(fs: Any, path: str, text: str, seconds: float) -> _SignedUrl:
    url = _urls[fs, path] = _SignedUrl(text, time.monotonic() + seconds)
    if len(_urls) > MAX_URLS:
        del _urls[next(iter(_urls))]
    return url


async def _sign(fs: Any, path: str) -> str:
    await fs.set_session()
    client = await fs.get_s3(fs.split_path(path)[0])
    events = client.meta.events
    events.register_first(RESOLVE, _use_regional_endpoint, unique_id="regional endpoint")
    events.register_last(RESOLVE, _note_region, unique_id="region")
    events.register_first("choose-signer.s3.GetObject", _choose_signature, unique_id="signature")
    url: str = await fs._url(path, expires=VALID_SECONDS)
    return "" if fs.config_kwargs.get("proxies") or _has_proxy(url) else url


def _has_proxy(url: str) -> bool:
    """Return True if the environment names a proxy. A direct connection may then get no answer."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


# Hooks of botocore. It makes URLs otherwise than requests: signed by version 2, which many stores
# refuse, or for the region of the client even where it has found the bucket in another one, and for
# Amazon's global host, which networks without the internet do not reach.

RESOLVE = "before-endpoint-resolution.s3"


def _use_regional_endpoint(context: dict[str, Any], **_: Any) -> None:
    context["use_global_endpoint"] = False


def _note_region(builtins: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    region = builtins["AWS::Region"]
    context["bucket_region"] = None if region == "aws-global" else region


def _choose_signature(signature_version: str, context: dict[str, Any], **_: Any) -> str | None:
    if signature_version not in ("v4-query", "s3v4-query"):
        return None
    context["signing"] = {"region": context.get("bucket_region")} | context.get("signing", {})
    return "s3v4-query"
