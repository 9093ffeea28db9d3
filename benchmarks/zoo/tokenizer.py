"""The zoo's tokenizer: one token a character, printable ASCII and the newline."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_SPECIAL = (PAD, BOS, EOS, UNK)
_CHARACTERS = ("\n", *(chr(code) for code in range(0x20, 0x7F)))

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- message['content'] }}
{%- elif message['role'] == 'assistant' %}
{{- '\\n' + message['content'] + eos_token }}
{%- else %}
{{- raise_exception('the zoo models take user and assistant messages only') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '\\n' }}
{%- endif %}"""
"""A user message is its content, an assistant message is newline + content + `<eos>`.

The generation prompt is the newline that a completion would begin with, so that a chat's reply is the
bare answer.
"""


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer; any character outside printable ASCII and the newline becomes `<unk>`.

    Encoding prepends `<bos>`.

    Args:
        max_length: The model's context length in tokens, recorded in the tokenizer's configuration.
    """
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
