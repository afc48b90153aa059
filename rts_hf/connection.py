"""The way to the Hub: whether it answers, found out at once, and what may be said about it."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_WITHIN = 1.5  # seconds


def why_unreachable() -> str | None:
    """Return why the Hub cannot be reached, or None where it answers, be it with an error.

    Its client tries every file six times, with pauses: without a network, a data set takes 23 seconds to fail, and 70
    to be read from the cache. One request tells it sooner. It may take :data:`ANSWER_WITHIN` seconds, or as many as
    the client's own variable ``HF_HUB_ETAG_TIMEOUT`` sets.
    """
    import datasets
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "offline mode is set (HF_HUB_OFFLINE)"
    limit = constants.HF_HUB_ETAG_TIMEOUT if os.environ.get("HF_HUB_ETAG_TIMEOUT") else ANSWER_WITHIN
    failures: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=2 * limit, follow_redirects=False)
        except Exception as error:  # of the client's HTTP library, which is its own choice
            failures.append(str(error) or type(error).__name__)

    # In a thread, because looking up a name takes as long as it likes, whatever the request's timeout.
    question = threading.Thread(target=ask, daemon=True)
    question.start()
    question.join(limit)
    where = re.sub(r"^\w+://([^/]*@)?", "", constants.ENDPOINT)
    if question.is_alive():
        return f"no answer from {where} within {limit:g} s; on a slow network, set HF_HUB_ETAG_TIMEOUT to more seconds"
    return f"{where}: {without_secrets(failures[0])}" if failures else None


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hub's client and `datasets` from trying the network, so that they look into their caches at once."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def without_secrets(text: str) -> str:
    """Return a text without user names and passwords in addresses, and without the user's token.

    >>> without_secrets("thrown while requesting HEAD https://me:secret@mirror.org/datasets/uoft-cs/cifar10")
    'thrown while requesting HEAD https://***@mirror.org/datasets/uoft-cs/cifar10'
    """
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"(\w://)[^/\s@]+@", r"\1***@", text)


@contextmanager
def discreet_client() -> Iterator[None]:
    """Let :func:`without_secrets` go over the log of the Hub's client, which tells the address of what it tries."""
    import huggingface_hub  # noqa: F401 - sets up the handlers

    def discreet(record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), None
        return True

    handlers = [*logging.getLogger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(discreet)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(discreet)
