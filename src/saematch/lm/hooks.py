"""Reading and replacing the residual stream of any decoder-only language model.

This file contains no forward code of any architecture. To continue from block ``k``, the model's
own forward runs while the blocks before ``k`` return their input at no cost and block ``k`` returns
the given hidden state instead of its own. If later blocks read keys and values of earlier blocks
(Gemma 4), the earlier blocks run as usual and only the output of block ``k`` is replaced. To stop
at a block, the blocks after it return their input. The head
(without the final norm) is applied in the same way, with the whole decoder switched off, so the
model's own scaling or capping of the logits still applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from saematch.core.errors import InputError

HEAD_TOKENS = {"cpu": 128}
"""Number of tokens whose logits are in memory at a time, by device; 1,024 on other devices. With a
small vocabulary their logits fit into a CPU's cache, with a large one into any memory."""


class LanguageModel(nn.Module):
    """A causal language model whose residual stream can be read and replaced."""

    model: Any
    """Model of transformers."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        revision: str = "",
        bos_id: int | None = None,
        special_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Wrap a model of transformers.

        ``bos_id`` is the token that every text begins with, or None. ``special_ids`` are the tokens
        that no metric counts.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.bos_id = bos_id
        self.special_ids = special_ids
        config = self.model.config.get_text_config()
        self.decoder, self.blocks = find_blocks(self.model.get_decoder(), config.num_hidden_layers)
        self._output_type: type | None = None
        self._block_container: tuple[type, int] | None = None
        self.runs_earlier_blocks = False
        """Whether ``continue_from`` runs the blocks before the replaced one, because later blocks
        read more of their results than the hidden state. ``self_test`` sets it."""
        self.joins_edits: dict[tuple[int, bool], bool] = {}
        """Whether the edits of a text can run as one sequence, by the number of binary digits of
        the texts' length and whether it exceeds an attention window. ``EditRunner`` sets it."""
        self.d_model: int = config.hidden_size
        self.n_embeddings: int = len(self.model.get_input_embeddings().weight)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)

    @property
    def is_dispatched(self) -> bool:
        """Whether a device map assigns the blocks to devices (``LmSource.device_map``)."""
        return hasattr(self.model, "hf_device_map")

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def refuse_ids(self, highest: int, source: str) -> None:
        """Raise ``InputError`` if a token id of ``source`` has no row in the embedding."""
        if highest >= self.n_embeddings:
            token = "" if self.tokenizer is None else repr(self.tokenizer.decode([highest]))
            raise InputError(
                f"{source} has the token {token} with the id {highest}, but {self.name} has "
                f"embeddings only for the ids 0 to {self.n_embeddings - 1}: use the tokenizer of "
                "the model, or remove this token from the texts"
            )

    def capture(
        self, ids: Int64[Tensor, "batch seq"], layers: tuple[int, ...]
    ) -> tuple[dict[int, Float[Tensor, "batch seq d_model"]], Float[Tensor, "batch seq d_model"]]:
        """Run the model once; return ``resid_post`` of the layers and the final hidden state.

        Sequences must be padded on the right: no position of a causal model sees the padding after
        it, so no mask is needed. ``token_losses`` computes losses from the final hidden state. All
        results are on the device of ``ids``.
        """
        states: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:

                def keep(
                    _module: nn.Module, _args: object, output: Any, layer: int = layer
                ) -> None:
                    states[layer] = hidden_of(output).to(ids.device)

                stack.callback(self.blocks[layer].register_forward_hook(keep).remove)
            final = self._decode(ids)
        missing = set(layers) - set(states)
        if missing:
            raise RuntimeError(f"blocks {sorted(missing)} were not run by the model's own forward")
        return states, final

    def states(
        self, ids: Int64[Tensor, "batch seq"], layers: tuple[int, ...]
    ) -> dict[int, Float[Tensor, "batch seq d_model"]]:
        """Return ``resid_post`` of the layers; blocks after the last of them do not run."""
        self._learn_conventions(ids)
        with self._ending_at(max(layers)):
            return self.capture(ids, layers)[0]

    def continue_from(
        self,
        layer: int,
        resid_post: Float[Tensor, "batch seq d_model"],
        ids: Int64[Tensor, "batch seq"],
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the final hidden state, had block ``layer`` returned ``resid_post``.

        Blocks up to and including ``layer`` do not run, unless ``runs_earlier_blocks`` is set: then
        they run on their true inputs. Later blocks get ``resid_post`` as their hidden state, and
        the shared keys and values from the true forward of the blocks up to and including
        ``layer``.
        """
        self._learn_conventions(ids)
        with self._starting_from(layer, resid_post):
            return self._decode(ids)

    def continue_to(
        self,
        source: int,
        target: int,
        resid_post: Float[Tensor, "batch seq d_model"],
        ids: Int64[Tensor, "batch seq"],
        **settings: Any,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return ``resid_post`` of layer ``target``, had block ``source`` returned ``resid_post``.

        Blocks after ``target`` do not run. For the other blocks, see ``continue_from``.
        ``settings`` are arguments of the decoder, such as a mask or a cache.
        """
        self._learn_conventions(ids)
        states: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self._starting_from(source, resid_post))
            stack.enter_context(self._ending_at(target))
            hook = self.blocks[target].register_forward_hook(
                lambda _module, _args, output: states.append(hidden_of(output).to(ids.device))
            )
            stack.callback(hook.remove)
            self._decode(ids, **settings)
        return states[0]

    @contextmanager
    def _starting_from(self, layer: int, resid_post: Tensor) -> Iterator[None]:
        """Make block ``layer`` return ``resid_post``; see ``continue_from``."""
        output = self._block_output(resid_post)
        with ExitStack() as stack:
            if self.runs_earlier_blocks:
                hook = self.blocks[layer].register_forward_hook(lambda *_: output)
                stack.callback(hook.remove)
            else:
                for block in self.blocks[:layer]:
                    stack.enter_context(_replaced(block, self._pass_through))
                stack.enter_context(_replaced(self.blocks[layer], lambda *_, **__: output))
            yield

    @contextmanager
    def _ending_at(self, layer: int) -> Iterator[None]:
        """Make the blocks after ``layer`` return their input."""
        with ExitStack() as stack:
            for block in self.blocks[layer + 1 :]:
                stack.enter_context(_replaced(block, self._pass_through))
            yield

    def _decode(self, ids: Tensor, **settings: Any) -> Tensor:
        settings = {"use_cache": False, **settings}
        return self.decoder(input_ids=ids, **settings).last_hidden_state.to(ids.device)

    def _learn_conventions(self, ids: Tensor) -> None:
        """Store the container types that blocks and decoder return, from one run on one token."""
        if self._output_type is not None:
            return
        outputs: list[Any] = []
        hook = self.blocks[0].register_forward_hook(lambda _m, _a, output: outputs.append(output))
        try:
            self._output_type = type(self.decoder(input_ids=ids[:1, :1], use_cache=False))
        finally:
            hook.remove()
        if isinstance(outputs[0], tuple | list):
            self._block_container = (type(outputs[0]), len(outputs[0]))

    def _block_output(self, hidden: Tensor) -> Any:
        """Return the output of a block with this hidden state; its other entries are None."""
        if self._block_container is None:
            return hidden
        container, length = self._block_container
        return container([hidden, *[None] * (length - 1)])

    def _pass_through(self, *args: Any, **kwargs: Any) -> Any:
        return self._block_output(args[0] if args else kwargs["hidden_states"])

    def logits(self, final: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq vocab"]:
        """Apply the model's own head to final hidden states."""
        ids = torch.zeros(final.shape[:2], dtype=torch.int64, device=final.device)
        self._learn_conventions(ids)
        assert self._output_type is not None
        output = self._output_type(last_hidden_state=final)
        with _replaced(self.decoder, lambda *_, **__: output):
            return self.model(input_ids=ids, use_cache=False).logits.to(final.device)

    def token_losses(
        self, final: Float[Tensor, "n d_model"], targets: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the cross-entropy of each target in nats, in float32.

        It works in chunks, so that the logits of all tokens are never in memory at once.
        """
        size = HEAD_TOKENS.get(final.device.type, 1024)
        losses = []
        for states, tokens in zip(final.split(size), targets.split(size), strict=True):
            logits = self.logits(states[None])[0].float()
            of_target = logits.gather(1, tokens[:, None])[:, 0]
            highest = logits.amax(dim=1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(dim=1)  # in place, since it is not used again
            losses.append(total.log_() + highest[:, 0] - of_target)
        return torch.cat(losses) if losses else final.new_zeros(0)


def find_blocks(model: nn.Module, n_layers: int) -> tuple[nn.Module, nn.ModuleList]:
    """Return the decoder and its list of blocks; raises ``InputError`` unless there is exactly one.

    ``model`` is or contains the decoder. For a model that also reads images, pass the part that
    reads text.
    """
    candidates = [
        (module, child)
        for module in model.modules()
        for child in module.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers
    ]
    outer = [
        (module, blocks)
        for module, blocks in candidates
        if not any(blocks is not other and blocks in other.modules() for _, other in candidates)
    ]
    if len(outer) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(outer)} lists of {n_layers} blocks, so its residual "
            "stream cannot be found; saematch supports decoder-only models with one list of blocks"
        )
    return outer[0]


def hidden_of(output: Any) -> Tensor:
    """Return the hidden state in the output of a block."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run ``forward`` instead of the module's own forward until the block ends.

    A forward that a device map had set on the module is restored.
    """
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
