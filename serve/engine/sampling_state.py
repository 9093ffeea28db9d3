"""What the draws of one sequence depend on besides its logits."""

from dataclasses import dataclass, field
from functools import cached_property

from kernels.sampling import SamplingRow
from serve.engine.request import SamplingParams
from serve.engine.seen_tokens import SeenTokens
from serve.engine.token_rules import TokenMask

_MASK = (1 << 64) - 1


@dataclass
class SamplingState:
    """One sequence's rules and what it has generated.

    Attributes:
        params: the request's rules.
        prompt: the prompt's tokens.
        seed: of the request's own random numbers.
        mask: the request's own, None if anything may be drawn.
        output: the tokens generated so far.
    """

    params: SamplingParams
    prompt: tuple[int, ...]
    seed: int
    mask: TokenMask | None = None
    output: list[int] = field(default_factory=list)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.output)

    @cached_property
    def seen(self) -> SeenTokens:
        """The tokens that penalties count: the output, and the prompt if it is penalised as well."""
        return SeenTokens(self.prompt if self.params.repetition_penalty != 1.0 else (), self.output)

    @property
    def penalised(self) -> bool:
        """Whether tokens are penalised for having been seen."""
        params = self.params
        return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)

    @property
    def held_back(self) -> bool:
        """Whether end and stop tokens have to wait."""
        return self.generated < self.params.min_tokens

    @property
    def banned(self) -> bool:
        """Whether any rule forbids tokens outright at the next draw."""
        rules = self.params.rules
        return (rules is not None and rules.bans) or self.held_back or self.mask is not None

    @property
    def ruled(self) -> bool:
        """Whether the next draw has biases or bans."""
        return self.params.rules is not None or self.held_back or self.mask is not None

    @property
    def free(self) -> bool:
        """Whether draws do not depend on the tokens drawn before, and only the token is needed of each."""
        return not self.ruled and not self.penalised and self.params.logprobs is None

    def row(self, penalised: bool = True, ahead: int = 0) -> SamplingRow:
        """The settings of the next draw, or of one `ahead` draws later.

        Not `penalised`: from logits that have their penalties.
        """
        params = self.params
        seen = self.seen if penalised and self.penalised else None
        return SamplingRow(
            temperature=0.0 if params.greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            uniform=0.0 if params.greedy else self.uniform(ahead),
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            seen=None if seen is None else seen.tokens,
            times=None if seen is None else seen.times,
        )

    def append(self, token: int) -> None:
        """Note a generated token."""
        self.output.append(token)
        if self.penalised and "seen" in self.__dict__:
            self.seen.append(token)
        if self.mask is not None:
            self.mask.accept(token)

    def uniform(self, ahead: int = 0) -> float:
        """The random number in [0, 1) for the next draw: a hash of seed and position, so preemption repeats it.

        Two rounds of the finaliser of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).
        """
        return (mix64(mix64(self.seed) + self.generated + ahead) >> 11) * 2.0**-53


def mix64(x: int) -> int:
    """A bijection of 64-bit integers whose outputs for consecutive inputs look independent."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
