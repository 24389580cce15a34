"""Whether the hub can be reached; asked first, because its library tries for half a minute."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit


def hub_answers() -> bool:
    """Whether something listens at the hub's address, or it is nobody's business to ask: where the
    hub is turned off its library looks into the cache, and a proxy makes the connection itself."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false")
    if offline or any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return True
    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False
