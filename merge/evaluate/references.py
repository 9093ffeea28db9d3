"""The models that a bundle is measured against: its base and its fine-tunes, run by transformers in this process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle import Bundle, GenerationSettings, own_settings
from merge.bundle import end_tokens as end_tokens_of
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.evaluate.divergence import Reference, take_reference, token_divergences
from merge.experts.added import added
from merge.experts.calibration import continue_greedily
from merge.experts.encoding import PromptEncoder
from merge.experts.examples import Example
from merge.experts.running import assign, build_model, end_tokens, load_tokenizer
from merge.inspect.inputs import find_models

_BATCH = 16


@dataclass(frozen=True)
class Written:
    """A reply of a reference.

    Attributes:
        text: of the reply, without special tokens.
        prompt: token ids of what was asked.
        tokens: token ids of the reply, with the one that ended it.
    """

    text: str
    prompt: Sequence[int]
    tokens: Sequence[int]


class References:
    """Base, fine-tunes and the bundle's own weights, one at a time in one decoder's memory.

    Attributes:
        base: None if it is not at its path any more.
        fine_tunes: by name, those that are at their paths.
        missing: a sentence for each model that is not, with the reason.
    """

    def __init__(self, bundle: Bundle, chat: bool) -> None:
        """Look for the models.

        Args:
            bundle: what was merged from them.
            chat: whether a chat template is applied to prompts: a fine-tune's own or else the base's.

        Raises:
            CheckpointError: the backbone cannot be run by transformers.
        """
        found = find_models(bundle)
        self.base, self.fine_tunes, self.missing = found.base, found.fine_tunes, found.missing
        self._bundle = bundle
        self._backbone = open_checkpoint(bundle.backbone_dir)
        self._tokenizer = load_tokenizer(bundle.backbone_dir)
        self._chat = chat
        stored = {info.dtype for info in self._backbone.tensors.values()}
        # A model is run in the dtype of its weights, as it is served.
        dtype = torch.bfloat16 if stored == {torch.bfloat16} else torch.float32
        self._model = build_model(bundle.backbone_dir, dtype)

    def fine_tune_replies(
        self, task: str, examples: Sequence[Example], limit: int, answered: Callable[[], None]
    ) -> list[Written]:
        """Let a fine-tune reply, greedily; afterwards its weights are still there for `take_reference`.

        Args:
            task: its name, one of `fine_tunes`.
            examples: the prompts.
            limit: most tokens of a reply.
            answered: called after each reply.
        """
        checkpoint = self.fine_tunes[task]
        own = own_settings(self._bundle.backbone_dir, *checkpoint.directories)
        return self._replies(checkpoint, own, examples, limit, answered)

    def base_replies(self, examples: Sequence[Example], limit: int, answered: Callable[[], None]) -> list[Written]:
        """Let the base reply, as `fine_tune_replies`."""
        assert self.base is not None
        return self._replies(self.base, GenerationSettings(), examples, limit, answered)

    def reference(self, written: Sequence[Written], done: Callable[[], None]) -> Reference:
        """What the model that wrote the last replies says along them; `done` is called after each."""
        prompts, replies = [item.prompt for item in written], [item.tokens for item in written]
        return take_reference(self._model, prompts, replies, done)

    @property
    def experts(self) -> tuple[str, ...]:
        """The bundle's experts."""
        return self._bundle.expert_names

    def divergences(self, model: str, reference: Reference) -> Iterator[Tensor]:
        """KL(reference ‖ model) at the tokens of each reply.

        Args:
            model: an expert's name for the backbone with it, "backbone" or "base".
            reference: of a fine-tune.
        """
        if model == "base":
            assert self.base is not None
            assign(self._model, self.base)
            yield from token_divergences(self._model, reference)
            return
        assign(self._model, self._backbone)
        expert = None if model == "backbone" else self._bundle.read_expert(model)
        with added(self._model, expert):
            yield from token_divergences(self._model, reference)

    def _replies(
        self,
        checkpoint: Checkpoint,
        own: GenerationSettings,
        examples: Sequence[Example],
        limit: int,
        answered: Callable[[], None],
    ) -> list[Written]:
        assign(self._model, checkpoint)
        encoder = self._encoder(own)
        prompts = [encoder.encode(example) for example in examples]
        usual = end_tokens(self._model, self._tokenizer) | frozenset(end_tokens_of(self._bundle.backbone_dir))
        ends = usual if own.end_tokens is None else frozenset(own.end_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, Written] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            replies = continue_greedily(self._model, [prompts[i] for i in chosen], limit, ends)
            for i, tokens in zip(chosen, replies, strict=True):
                text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
                found[i] = Written(text, prompts[i], tokens)
                answered()
        return [found[i] for i in range(len(prompts))]

    def _encoder(self, own: GenerationSettings) -> PromptEncoder:
        usual = self._tokenizer.chat_template
        if not self._chat:
            return PromptEncoder(self._tokenizer, None)
        if own.chat_template is None:
            return PromptEncoder(self._tokenizer, usual if isinstance(usual, str) else None)
        return PromptEncoder(self._tokenizer, own.chat_template.source, own.chat_template.variables)


def longest_answers(answers: Mapping[str, Sequence[str]], bundle: Bundle | None) -> dict[str, int]:
    """Tokens of each task's longest answer; without a bundle, whose tokenizer would count them, its bytes."""
    if bundle is None:
        return {task: max(len(answer.encode()) for answer in items) for task, items in answers.items()}
    tokenizer = load_tokenizer(bundle.backbone_dir)
    return {
        task: max(len(ids) for ids in tokenizer(list(items), add_special_tokens=False)["input_ids"])
        for task, items in answers.items()
    }
