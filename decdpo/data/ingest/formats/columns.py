"""The column names a user may give where a source's own cannot be recognised."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Names of a source's columns; whatever is left out is recognised by its usual names.

    prompt : the prompt, several columns are joined by a newline.
    system, history : the system's turn, and the turns before the question.
    chosen, rejected : the preferred and the other answer.
    answers : two answers, of which ``label`` or ``votes`` says which was preferred.
    label : one or more columns with a verdict; of several, each is one person's.
    label_values : what a label says for the first and for the second answer.
    label_scale : the numbers that say most for the first and for the second answer; what is nearer
        to one of them prefers its answer, their middle is a tie.
    votes : a list of [person, verdict].
    user : who judged. weight : of the pair in the loss. score_chosen, score_rejected : scores; with
        ``answers`` and a verdict those of the first and of the second answer.
    """

    prompt: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    answers: tuple[str, str] | None = None
    label: tuple[str, ...] = ()
    label_values: tuple[str, str] | None = None
    votes: str | None = None
    user: str | None = None
    weight: str | None = None
    score_chosen: str | None = None
    score_rejected: str | None = None
    system: str | None = None
    history: str | None = None
    label_scale: tuple[float, float] | None = None

    def named(self) -> list[str]:
        """Return every column that was named, so that a misspelt one can be refused."""
        single = (self.chosen, self.rejected, self.votes, self.user, self.weight, self.system)
        more = (self.history, self.score_chosen, self.score_rejected)
        several = (*self.prompt, *(self.answers or ()), *self.label)
        return [*several, *filter(None, (*single, *more))]
