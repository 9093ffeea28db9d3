"""The recipe's parameters of `merge_method: frank_wolfe`."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merge.methods import AUTO, BoundMethod, ParameterError, find_method

StepRule = Literal["classic", "scaled", "line_search"]
Granularity = Literal["task", "layer"]
Score = Literal["inner_product", "cosine"]

USUAL_STEP_SIZE = 0.1
"""The released code's factor for `scaled`."""


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodChoice(_Block):
    """A merge method that works tensor by tensor, with its parameters."""

    method: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        try:
            find_method(self.method).parameters.model_validate(self.parameters)
        except ParameterError as error:
            raise ValueError(str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{self.method}: {place}: {first['msg']}") from error
        if self.parameters.get("lambda") == AUTO:
            raise ValueError(f"{self.method}: lambda: {AUTO} is for merge_method; write a number here")
        return self

    def bound(self) -> BoundMethod:
        """The method with these parameters."""
        method = find_method(self.method)
        return method.bind(method.parameters.model_validate(self.parameters), {})


class SoftConfig(_Block):
    """The soft variant's own parameters.

    Attributes:
        vertices: `per_task`: for each target task the vertex that its own loss's gradient points to, each once; or a
            number k: the k best for the gradient of the whole loss.
        steps: steps of projected gradient on the coefficients; 0: equal coefficients, moved by `step_rule`.
    """

    vertices: Literal["per_task"] | int = Field(default="per_task", union_mode="left_to_right")
    steps: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if isinstance(self.vertices, int) and self.vertices < 1:
            raise ValueError(f"vertices is {self.vertices}; it must be per_task or a number of at least 1")
        return self


class ObjectiveConfig(_Block):
    """The loss: cross-entropy of the replies to the calibration prompts.

    Attributes:
        tasks: the tasks to be good at, which need not all have a fine-tune; None: every task of the calibration file.
        per_task: prompts of each task (the first ones).
        replies: `answer`: the file's answers; `fine_tune`: what the task's fine-tune itself replies, which needs no
            answers and carries the separators and end tokens that it has learned.
        separator: text between a prompt and its answer, part of the reply; if left out, nothing if a chat template is
            applied to the prompts. It has no effect with `fine_tune`.
        answer_tokens: most tokens of a reply of `fine_tune`.
        scale: `nats`: the mean of the tasks' losses, the paper's; or `log`: the mean of their logarithms, so that
            halving one task's loss is worth as much as halving another's. With `nats` a task that starts at many nats a
            token takes the merge over at the price of those that were almost right.
        batch_size: sequences run at once; what bounds the memory of activations.
    """

    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    per_task: int = Field(default=32, ge=1)
    replies: Literal["answer", "fine_tune"] = "answer"
    separator: str = "\n"
    answer_tokens: int = Field(default=64, ge=1)
    scale: Literal["nats", "log"] = "nats"
    batch_size: int = Field(default=16, ge=1)


class FrankWolfeConfig(_Block):
    """How to run Frank-Wolfe. See `merge_frank_wolfe` for what it computes.

    Attributes:
        variant: `hard`: one vertex a step; `soft`: several, with coefficients fitted to the loss.
        granularity: `task`: one choice for the whole model; `layer`: one for every tensor.
        score: what the chosen vertex minimises: `inner_product`, the paper's ⟨∇l(θ_t), s⟩; or `cosine`, the released
            code's sum over tensors of the cosine between gradient and checkpoint.
        steps: most steps.
        step_rule: `classic`: 2/(t+2); `scaled`: that times `step_size`; `line_search`: the best step towards the
            vertex. None: `line_search` if a rule is needed.
        step_size: for `scaled`; None: 0.1.
        init: the starting point, which is also a vertex: the base, or the fine-tunes merged by another method.
        local_update: None: the vertices are the fine-tunes; else a method applied to the base and one task vector at a
            time makes the vertices (`ties` trims them, `task_arithmetic` with a weight above 1 widens the hull).
        soft: the soft variant's own parameters.
        tolerance: stop when the gap is at most this.
        include: shell-style patterns of the tensors that move.
        exclude: patterns of those that stay as in the base.
        objective: the loss.
    """

    variant: Literal["hard", "soft"] = "soft"
    granularity: Granularity = "task"
    score: Score = "inner_product"
    steps: int = Field(default=10, ge=1)
    step_rule: StepRule | None = None
    step_size: float | None = Field(default=None, gt=0, le=1)
    init: Literal["base"] | MethodChoice = "base"
    local_update: MethodChoice | None = None
    soft: SoftConfig | None = None
    tolerance: float = Field(default=0.0, ge=0)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.variant == "hard" and self.soft is not None:
            raise ValueError("soft has no effect with variant: hard; leave it out")
        if self.variant == "soft" and self.step_rule is not None and self.soft_settings.steps:
            raise ValueError("step_rule has no effect with fitted coefficients; leave it out or set soft.steps: 0")
        if self.step_size is not None and self.step_rule != "scaled":
            raise ValueError("step_size needs step_rule: scaled")
        return self

    @property
    def soft_settings(self) -> SoftConfig:
        """`soft`, or its defaults."""
        return self.soft or SoftConfig()
