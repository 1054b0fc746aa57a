"""Connection to a judge from its spec."""

from __future__ import annotations

import logging
from pathlib import Path

from saematch.chat.asking import AskingError, Chat
from saematch.chat.batches import Batches
from saematch.chat.client import OpenAiServer
from saematch.chat.model import ChatModel, NoJudge
from saematch.chat.questions import Judge
from saematch.chat.replies import ReplyStore
from saematch.judge.overlap import OverlapJudge, WordOverlap

log = logging.getLogger(__name__)


def connect(spec: ChatModel | WordOverlap | NoJudge, store: Path) -> Judge | None:
    """Return the judge of a spec; None for no judge. ``store`` is the file of an LLM's answers.

    Raises ``AskingError`` with one line if the key, the server or the model's name is wrong.
    """
    if isinstance(spec, NoJudge):
        return None
    if isinstance(spec, WordOverlap):
        return OverlapJudge(spec)
    if spec.cached_only:
        assert spec.model is not None
        return Chat(spec, spec.model, None, ReplyStore(store))
    server = OpenAiServer(spec)
    try:
        model = server.model_name()
    except AskingError:
        server.close()
        raise
    if spec.key_variable and not spec.price_input + spec.price_output:
        log.warning("judge.price_input and price_output are 0: the cost of %s is unknown", model)
    chat = Chat(spec, model, server, ReplyStore(store))
    chat.batches = Batches(chat, server)
    return chat
