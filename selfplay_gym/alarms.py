"""What goes wrong in a run without an error: alarms over the metrics of its steps.

Each alarm rings once, and again only after what it saw was gone for a while. They know nothing but metrics: so a
report finds in ``metrics.jsonl`` what the run itself warned of, and a resumed run what was said before it was killed.

The limits were chosen by hand from eleven runs of the nano policy, the shipped recipe and trials of its settings, so
that these ring none. The range of their windows stands beside each limit; shapes are from the archives of five of them,
rows without a gradient from single steps. No limit was tried on a run that collapsed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Record = Mapping[str, float]

WINDOW = 20
"""Steps that an alarm looks back: the tasks of one are too few."""
QUIET = 10
"""Steps for which a condition must have been gone before its alarm can ring again."""
DROUGHT = 10
"""Steps without an admitted task of a family."""
BROKEN = 5
"""Steps over which missing verdicts are counted: the fewest, since each step costs."""

ALWAYS_SOLVED = 0.6  # share of new tasks; 0.14 to 0.48
SHORTER = 0.9  # body lines, against their best window; 0.95 and more
REPEATED = 0.6  # share of proposals that the check `new` refuses; 0.05 to 0.46
SHAPES = 0.35  # distinct shapes to new tasks of a step; 0.72 to 1
ENTROPY = 0.3  # against the first window; 0.8 to 1
NO_GRADIENT = 0.8  # share of rows; 0.1 to 0.6, up to 0.9 in a first step
UNFINISHED = 0.25  # share of completions; 0 to 0.001
NO_VERDICT = 0.05  # share of rows; 0


class History:
    """The metrics of a run, as far back as alarms look."""

    def __init__(self) -> None:
        self.steps = 0
        self._recent: deque[Record] = deque(maxlen=WINDOW)
        self._first: list[Record] = []
        self._most_lines = -math.inf

    def add(self, record: Record) -> None:
        """Take in the metrics of one more step."""
        self.steps += 1
        self._recent.append(record)
        if len(self._first) < WINDOW:
            self._first.append(record)
        self._most_lines = max(self._most_lines, self.mean("tasks/body_lines"))

    @property
    def last(self) -> Record:
        """The newest step."""
        return self._recent[-1]

    @property
    def most_lines(self) -> float:
        """Body lines of new tasks in the window that had the most."""
        return self._most_lines

    def mean(self, name: str) -> float:
        """Return the mean over the window, NaN before it is full or where no step has that metric."""
        return _mean(self._recent, name)

    def first(self, name: str) -> float:
        """Return the same of the first window."""
        return _mean(self._first, name)

    def share(self, part: str, whole: str, steps: int = WINDOW) -> float:
        """Return the sum of one count over that of another, in up to so many steps; NaN over nothing."""
        recent = list(self._recent)[-steps:]
        total = sum(record.get(whole, 0.0) for record in recent)
        return sum(record.get(part, 0.0) for record in recent) / total if total else math.nan

    def lacks(self, name: str, steps: int) -> bool:
        """Return whether a metric was missing or 0 for at least so many steps."""
        recent = list(self._recent)[-steps:]
        return len(recent) == steps and not any(record.get(name, 0.0) for record in recent)


def _mean(records: deque[Record] | list[Record], name: str) -> float:
    values = [record[name] for record in records if name in record]
    return sum(values) / len(values) if values and len(records) == WINDOW else math.nan


@dataclass(frozen=True)
class Alarm:
    """One way in which a run goes wrong.

    Attributes:
        name: What it is known by.
        sees: Says what is wrong, and nothing while nothing is. NaN, which stands for what is not known yet, is above
            no limit and below none.
        meaning: Why that matters and what to do.
    """

    name: str
    sees: Callable[[History], str]
    meaning: str


def _retreat(seen: History) -> str:
    solved, lines = seen.mean("tasks/always_solved"), seen.mean("tasks/body_lines")
    if solved > ALWAYS_SOLVED and lines < SHORTER * seen.most_lines:
        fell = f"their programs fell from {seen.most_lines:.1f} to {lines:.1f} lines"
        return f"{solved:.0%} of the new tasks are always solved, and {fell}"
    return ""


def _repeats(seen: History) -> str:
    share = seen.share("rejected/new", "proposals")
    return f"{share:.0%} of the proposals repeat a task that is there already" if share > REPEATED else ""


def _alike(seen: History) -> str:
    share = seen.mean("tasks/shapes")
    return f"100 new tasks of a step have {100 * share:.0f} distinct shapes" if share < SHAPES else ""


def _narrow(seen: History) -> str:
    now, then = seen.mean("entropy"), seen.first("entropy")
    return f"entropy fell from {then:.3g} to {now:.3g} a token" if now < ENTROPY * then else ""


def _silent(seen: History) -> str:
    share = seen.mean("no_gradient")
    return f"{share:.0%} of the rows have advantage 0" if share > NO_GRADIENT else ""


def _cut_off(seen: History) -> str:
    share = seen.mean("unfinished")
    return f"{share:.0%} of the completions are cut off at their limit" if share > UNFINISHED else ""


def _unjudged(seen: History) -> str:
    share = seen.share("no_verdict", "rows", BROKEN)
    return f"{share:.0%} of the rows have no verdict" if share > NO_VERDICT else ""


ALARMS = (
    Alarm(
        "retreat",
        _retreat,
        "the proposer retreats to what is easy, from which solvers learn nothing; try a stronger novelty bonus "
        "(reward.novelty), a lower update.learning_rate, or reward.learnability=azr-code, which punishes tasks that "
        "are always solved",
    ),
    Alarm(
        "repeats",
        _repeats,
        "the proposer goes round in circles and few new tasks come in; try a higher play.temperature.propose, more "
        "references, or a stronger reward.novelty",
    ),
    Alarm(
        "alike",
        _alike,
        "solvers practise one kind of program; try a stronger reward.novelty, more references, or a higher "
        "play.temperature.propose",
    ),
    Alarm(
        "entropy",
        _narrow,
        "the policy hardly explores any more and soon stops learning; lower update.learning_rate, or set "
        "update.entropy_coef or update.beta, from a checkpoint before this",
    ),
    Alarm(
        "no-gradient",
        _silent,
        "most of what is generated teaches nothing, since tasks are solved always or never; try more play.attempts, "
        "play.replays=learnability, or proposals nearer to what the policy can do",
    ),
    Alarm(
        "unfinished",
        _cut_off,
        "answers are judged before they are given; raise play.max_new_tokens, or see in completions/ whether the "
        "policy rambles",
    ),
    Alarm(
        "no-verdict",
        _unjudged,
        "that is the machinery and not the policy, and these rows are lost; see `selfplay-gym doctor`, the memory of "
        "this machine, and log.txt",
    ),
)
"""Those that need no settings."""


def mismatch(limit: float) -> Alarm:
    """Return the alarm of a sampler that is far from the trainer."""

    def sees(seen: History) -> str:
        mean = seen.last.get("mismatch/mean", 0.0)
        if mean <= limit:  # what is not a number is above too
            return ""
        largest, divergence = (seen.last.get(f"mismatch/{part}", math.nan) for part in ("max", "kl"))
        return (
            f"the sampler's log-probs differ from the trainer's by {mean:.3g} a token (largest {largest:.3g}, KL "
            f"{divergence:.2g}), above mismatch.alarm = {limit:g}"
        )

    meaning = "the update takes them for the same; check precision, temperature and that weights are handed over"
    return Alarm("mismatch", sees, meaning)


def drought(family: str) -> Alarm:
    """Return the alarm of a family that admits nothing."""

    def sees(seen: History) -> str:
        if not seen.lacks(f"propose/{family}/admitted", DROUGHT):
            return ""
        refused = [name for name in seen.last if name.startswith("rejected/")]
        common = max(refused, key=lambda name: seen.last[name], default="rejected/none").removeprefix("rejected/")
        return f"{family} has admitted no task for {DROUGHT} steps (rejected most in this one: {common})"

    meaning = (
        "nothing new is solved there; read completions/ in the run's folder, and start from a policy that writes "
        "proposals, with shorter prompts or with fewer checks"
    )
    return Alarm(f"drought/{family}", sees, meaning)


class Alarms:
    """The alarms of one run.

    Args:
        families: That propose.
        mismatch_limit: The setting ``mismatch.alarm``.
    """

    def __init__(self, families: Iterable[str], mismatch_limit: float) -> None:
        self._alarms = (*ALARMS, mismatch(mismatch_limit), *map(drought, families))
        self._history = History()
        self._last: dict[str, int] = {}

    def saw(self, record: Record) -> list[str]:
        """Take in a step's metrics; return a sentence for each alarm that begins to ring.

        >>> alarms = Alarms(["deduction"], mismatch_limit=0.05)
        >>> [len(alarms.saw({})) for _ in range(12)]
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
        """
        self._history.add(record)
        now, sentences = self._history.steps, []
        for alarm in self._alarms:
            if seen := alarm.sees(self._history):
                if now - self._last.get(alarm.name, -math.inf) > QUIET:
                    sentences.append(f"{seen}: {alarm.meaning}")
                self._last[alarm.name] = now
        return sentences
