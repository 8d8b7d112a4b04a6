"""ComfyUI's server: where this pack adds its routes, and tells the user something while a workflow runs."""

from __future__ import annotations

import logging
import sys
from threading import Lock
from typing import Any

from comfy_execution.utils import get_executing_context

log = logging.getLogger(__name__)

EVENT = "llm4gen.notice"  # of the websocket; its data: kind, node and prompt_id of what runs
LOSES = "loses"  # a kind of notice. Kinds are keys of the sentences in web/texts.js, in the user's language
LOG_LINES = {
    LOSES: "Node %s encodes tokens of CLIP's alone, so the LLM's half is missing from its result. Put LLM4GEN Fuse "
    "Conditioning after this node.",
}


def running_server() -> Any:
    """The PromptServer of this process; None if it runs none."""
    # Whoever starts a server has imported this module. Importing it here would import half of ComfyUI.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


class Notices:
    """Remembers the notices of the present run, because a node may give the same one many times."""

    def __init__(self) -> None:
        self.run: str | None = None
        self.sent: set[tuple[str, str]] = set()
        self.lock = Lock()

    def is_new(self, run: str, node: str, kind: str) -> bool:
        """Whether this is the first notice of its kind from a node in a run. It counts as sent from now on."""
        with self.lock:
            if run != self.run:
                self.run, self.sent = run, set()
            is_new = (node, kind) not in self.sent
            self.sent.add((node, kind))
            return is_new


NOTICES = Notices()


def notify(kind: str) -> None:
    """Sends a notice about the running node: a line in the log, and a message in the browser that started the run.

    Outside of a run, the line goes to the log each time.
    """
    context = get_executing_context()
    if context is None:
        log.warning(LOG_LINES[kind], "(unknown)")
    elif NOTICES.is_new(context.prompt_id, context.node_id, kind):
        log.warning(LOG_LINES[kind], context.node_id)
        server = running_server()
        if server is not None:
            data = {"kind": kind, "node": context.node_id, "prompt_id": context.prompt_id}
            server.send_sync(EVENT, data, server.client_id)


def show_text(text: str) -> None:
    """Shows text in the running node, in place of what it showed before, in the browser that started the run."""
    context, server = get_executing_context(), running_server()
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id, server.client_id)
