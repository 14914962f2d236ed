"""What a plan knows of the samples: measured on some of them, or assumed and said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from pipeline.experiment import Experiment
from pipeline.planner.catalogue import model_size
from pipeline.planner.models import ModelSize
from pipeline.planner.shards import RowKey
from pipeline.planner.survey import SURVEYS_FOLDER, Survey, SurveyError, request_of, survey
from pipeline.planner.work import Workload
from stages.contract.place import place_of

SAMPLES = 2_900_000
RESPONSE_TOKENS = 150
"""The paper's training set."""
PROMPT_TOKENS = 60
"""A question with the template around it."""
PROCESS_BYTES = 0.95e9
"""Of a worker before it loads a model: Python, torch, transformers, Ray."""
ASSUMED_KEYS = 64
TRAINED, UNTRAINED, MADE_UP = "trained", "untrained", "made up"
"""Where the vectors of a predicted cache come from: rehearsed with or without trained verbalizers, or Gaussian."""


@dataclass(frozen=True)
class Options:
    """What a person states; None leaves it to the measurement or the assumption."""

    samples: int | None = None
    response_tokens: float | None = None
    prompt_tokens: float | None = None
    image_tokens: float | None = None


@dataclass(frozen=True)
class Facts:
    """About the samples, on average.

    Attributes:
        workload: all of them.
        longest_tokens: of the longest one.
        vocabulary: real token ids; None if only the models' configurations say.
        process_bytes: of a worker before it loads a model.
        keys: of some rows of a cache.
        rehearsed: bytes of the caches of the samples that `keys` are of, by codec.
        vectors: `TRAINED`, `UNTRAINED` or `MADE_UP`.
        basis: where all that comes from, for people.
    """

    workload: Workload
    longest_tokens: float
    vocabulary: int | None
    process_bytes: float
    keys: tuple[RowKey, ...]
    rehearsed: Mapping[str, int]
    vectors: str
    basis: str

    @property
    def samples(self) -> float:
        """In the training set."""
        return self.workload.samples

    @property
    def longer_than_keys(self) -> float:
        """How much longer responses are than those of the keys."""
        return self.workload.response_tokens / mean(len(key.response_ids) for key in self.keys)


def find_facts(experiment: Experiment, options: Options, verbalization: str | None, *, rehearse: bool = True) -> Facts:
    """Measured on the samples if they and the teacher's processor are on this machine, else assumed.

    Args:
        experiment: whose samples.
        options: what is stated.
        verbalization: place of the artifact with trained verbalizers, where there is one.
        rehearse: whether caches of some samples are made, if that is cheap.
    """
    teacher = model_size("teacher", experiment.teacher)
    try:
        request = request_of(experiment, teacher, verbalization, rehearse=rehearse)
        found = survey(request, place_of(experiment.store) / SURVEYS_FOLDER)
    except SurveyError as error:
        return assumed(teacher, experiment.data.preprocessing.max_tokens, options, str(error))
    return measured(found, teacher, options)


def assumed(teacher: ModelSize, max_tokens: int, options: Options, why: str) -> Facts:
    """Without data: one picture of 640 x 480 pixels a sample, and the paper's numbers.

    Args:
        teacher: for its image tokens.
        max_tokens: of a sample; longer ones are left out.
        options: what was stated.
        why: nothing was measured.
    """
    vision = teacher.vision
    images = vision.picture_tokens if options.image_tokens is None else options.image_tokens
    patches = vision.picture_patches * images / vision.picture_tokens
    workload = Workload(
        samples=options.samples or SAMPLES,
        text_tokens=PROMPT_TOKENS if options.prompt_tokens is None else options.prompt_tokens,
        image_tokens=images,
        response_tokens=options.response_tokens or RESPONSE_TOKENS,
        patches=patches,
        patches_per_picture=min(patches, vision.attended_patches or patches),
    )
    keys = tuple(_made_up_key(number, workload) for number in range(ASSUMED_KEYS))
    longest = max(max_tokens, workload.tokens)
    return Facts(workload, longest, None, PROCESS_BYTES, keys, {}, MADE_UP, f"assumed ({why})")


def measured(survey: Survey, teacher: ModelSize, options: Options) -> Facts:
    """From a survey; what was stated goes before what was found."""
    images = survey.image_tokens if options.image_tokens is None else options.image_tokens
    more = images / survey.image_tokens if survey.image_tokens else 1.0
    workload = Workload(
        samples=options.samples or survey.samples,
        text_tokens=survey.text_tokens if options.prompt_tokens is None else options.prompt_tokens,
        image_tokens=images,
        response_tokens=options.response_tokens or survey.response_tokens,
        patches=survey.patches * more,
        patches_per_picture=min(survey.patches_per_picture * more, teacher.vision.attended_patches or float("inf")),
    )
    return Facts(
        workload=workload,
        longest_tokens=max(survey.longest_tokens, workload.tokens),
        vocabulary=survey.vocabulary,
        process_bytes=survey.process_bytes,
        keys=survey.keys,
        rehearsed=survey.rehearsed,
        vectors=MADE_UP if not survey.rehearsed else TRAINED if survey.trained else UNTRAINED,
        basis=f"measured on {len(survey.keys):,} of {survey.samples:,} samples",
    )


def _made_up_key(number: int, workload: Workload) -> RowKey:
    """Ids and hashes of the usual form; token ids that hardly repeat."""
    mixed = [(number * 4099 + place * 104729) % 151_643 for place in range(max(1, round(workload.response_tokens)))]
    seen = f"{round(workload.tokens)} tokens {mixed[0] * 28_111 % 2**32:08x}, image_grid_thw [[1, 34, 46]]"
    return RowKey(f"sample-{number:07d}", f"{number * 2_654_435_761:016x}-0123456789abcdef", seen, tuple(mixed))
