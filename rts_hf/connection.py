"""The way to the Hub: whether it answers, found out at once, and what may be said about it."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_WITHIN = 1.5  # seconds
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
_AGAIN = "the same command goes on where this one stopped"


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


@contextmanager
def errors_explained(repo_id: str) -> Iterator[None]:
    """Say in one line what the Hub or the network refused to somebody who publishes, and what to do.

    Args:
        repo_id: Named in errors.

    Raises:
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub does not answer, or not as it should.
    """
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    reason = why_unreachable()
    if reason is not None:
        raise ConnectionError(f"repo={repo_id!r}: the Hub cannot be reached ({reason}); {_AGAIN}.")
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"repo={repo_id!r} cannot be published without being logged in; {LOGIN}.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        raise _explained(repo_id, error) from error
    except RuntimeError as error:
        # Of a file that could not be sent, with the reason below it, which is another RuntimeError where several were
        # on their way: the client closes the connection that they share. Xet's own client raises it too.
        raise _explained(repo_id, error.__cause__ or error) from error


def _explained(repo_id: str, error: BaseException) -> OSError:
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        said = _in_one_line(str(error) or type(error).__name__)
        return ConnectionError(f"repo={repo_id!r}: the connection broke ({said}); {_AGAIN}.")
    status = error.response.status_code if error.response is not None else 0
    said = _in_one_line(str(error.server_message or error))
    if status == 401:
        return PermissionError(f"repo={repo_id!r}: the Hub does not know the token ({said}); {LOGIN}.")
    if status == 403:
        return PermissionError(
            f"repo={repo_id!r}: the token may not write there ({said}); {LOGIN}, or name a repository of your own."
        )
    if status == 429:
        return ConnectionError(f"repo={repo_id!r}: the Hub asks to wait (429, {said}); later, {_AGAIN}.")
    return ConnectionError(f"repo={repo_id!r}: the Hub answered with {status} ({said}); {_AGAIN}.")


def _in_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", without_secrets(text))[:200]
