"""The text domain: a real pretrained sentence encoder, fine-tuned on classification tasks from real text.

`sources` finds the raw text and the encoder in installable packages, `tasks` makes labelled examples of it and
`encoder` is the domain.
"""

from benchmarks.quality.text.encoder import TextDomain

__all__ = ["TextDomain"]
