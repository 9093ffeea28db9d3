"""From calibration examples to token ids, as the server would make them of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from merge.bundle import GenerationSettings, read_template
from merge.checkpoint import Checkpoint
from merge.experts.config import CalibrationConfig
from merge.experts.examples import CalibrationError, Example
from merge.experts.running import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptEncoder:
    """How prompts become token ids.

    Attributes:
        tokenizer: the base's.
        template: the chat template that is applied to prompts; None: they are used unchanged.
        variables: special tokens that the template has in place of the tokenizer's.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, example: Example) -> list[int]:
        """The ids of one prompt, with its begin-of-sequence token once.

        With a template a plain prompt is one user message, and the generation prompt follows.

        Raises:
            CalibrationError: messages without a template, a prompt to which a template was already applied, or messages
                that the template does not take.
        """
        if self.template is None:
            return self._plain(example)
        if example.messages is None:
            self._check_bare(example.text)
        messages = example.messages and [asdict(message) for message in example.messages]
        try:
            text = self.tokenizer.apply_chat_template(
                messages or [{"role": "user", "content": example.text}],
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=False,
                **self.variables,
            )
        except Exception as error:  # the template is a program of the model's author, and may fail in any way
            reason = " ".join(str(error).split())
            raise CalibrationError(f"the chat template does not take {_short(example.text)}: {reason}") from error
        # The template writes the special tokens itself.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _plain(self, example: Example) -> list[int]:
        if example.messages is not None:
            raise CalibrationError(
                f"{_short(example.text)} is given as messages, but no chat template is used: write it as a prompt"
            )
        ids: list[int] = self.tokenizer(example.text)["input_ids"]
        begin = self.tokenizer.bos_token_id
        return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids

    def _check_bare(self, text: str) -> None:
        special = next((token for token in self.tokenizer.all_special_tokens if token in text), None)
        if special is not None:
            raise CalibrationError(
                f"{_short(text)} contains the special token {special!r}, as if a chat template was applied already: "
                "write the bare text, or set calibration.chat_template: none"
            )


def prompt_encoder(base: Checkpoint, settings: CalibrationConfig) -> PromptEncoder:
    """How prompts are encoded for the backbone, which has the base's tokenizer and chat template.

    Args:
        base: θ₀.
        settings: whether a template is wanted.

    Raises:
        CheckpointError: the base has no tokenizer that can be read.
        BundleError: its chat template cannot be read.
    """
    template = None if settings.chat_template == "none" else read_template(base.path)
    return PromptEncoder(load_tokenizer(base.path), None if template is None else template.source)


def own_encoders(
    encoder: PromptEncoder, own: Mapping[str, GenerationSettings], settings: CalibrationConfig
) -> dict[str, PromptEncoder]:
    """How prompts are encoded for each expert: with the chat template that it is served with.

    Args:
        encoder: the backbone's.
        own: by task, what is the fine-tune's own.
        settings: whether a template is wanted.
    """
    return {
        task: encoder
        if (template := item.chat_template) is None or settings.chat_template == "none"
        else PromptEncoder(encoder.tokenizer, template.source, template.variables)
        for task, item in own.items()
    }


def encode_prompts(
    encoders: Mapping[str, PromptEncoder],
    examples: Mapping[str, Sequence[Example]],
    settings: CalibrationConfig,
    context: int | None,
) -> tuple[dict[str, list[list[int]]], list[str]]:
    """Encode the prompts that experts are cut with.

    Args:
        encoders: by task.
        examples: by task; the first `settings.per_task` are taken.
        settings: the recipe's.
        context: tokens that the model has positions for; None if it does not say.

    Returns:
        Token ids by task without the prompts that fill the context, and a sentence for each task that has some.

    Raises:
        CalibrationError: a prompt that cannot be encoded, or a task of which none is left.
    """
    found: dict[str, list[list[int]]] = {}
    told: list[str] = []
    for task, items in examples.items():
        encoded = [encoders[task].encode(item) for item in items[: settings.per_task]]
        found[task] = [ids for ids in encoded if context is None or len(ids) < context]
        long = len(encoded) - len(found[task])
        if not found[task]:
            raise CalibrationError(f"every prompt of {task} fills the context of {context} tokens: shorten them")
        if long:
            told.append(f"{long} of {len(encoded)} prompts of {task} fill the context of {context} tokens: left out")
    return found, told


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
