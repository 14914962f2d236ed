"""What trained teachers and students say at response tokens: the material of the codecs' benchmarks.

`of_demo` comes from the digits models as `vlsi prepare` makes them and from their verbalizers as the
stages train them; `of_large_vocabulary` from models with 151,936 words. `widened` gives a trained
teacher's states the width of a large one.
"""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from stages import capture, prepare, verbalization
from stages.contract import Job
from stages.contract.files import STUDENT_VERBALIZERS_FILE, TEACHER_VERBALIZERS_FILE
from stages.contract.job import Run, execute
from stages.contract.settings import ModelLoading, PrepareSettings, Preprocessing
from stages.data.encoding import Encoded, Encoder, collate, encode_all
from stages.data.packing import pack
from stages.data.sample import read_samples
from stages.losses.divergence import Head, divergence, label_target, partition
from stages.models.backbone import Backbone, load_processor
from stages.models.verbalizer import Verbalizers
from tests.bench import large_vocabulary

GAIN_SPREAD = 0.5
"""Standard deviation of the logarithm of the channels' gains, as final norms of large models have it."""
FLOAT32 = ModelLoading(dtype="float32")


class Said(NamedTuple):
    """Inputs of the heads at the response tokens of some samples, layers from shallow to deep.

    Attributes:
        samples: whose N response tokens stand one after the other.
        teacher: [T, N, d_t], the verbalized target layers.
        student: [S, N, d_s].
        teacher_head: [V, d_t].
        student_head: [V, d_s].
    """

    samples: list[Encoded]
    teacher: Tensor
    student: Tensor
    teacher_head: Head
    student_head: Head

    @property
    def counts(self) -> list[int]:
        """Response tokens of each sample."""
        return [len(sample.response_ids) for sample in self.samples]

    def cross_entropies(self) -> dict[str, list[float]]:
        """Of each layer, nats per response token, on one token in four."""
        labels = torch.cat([sample.response_ids for sample in self.samples])[::4]
        sides = {"teacher": (self.teacher, self.teacher_head), "student": (self.student, self.student_head)}
        return {
            name: divergence(x[:, ::4], partition(x[:, ::4], head), label_target(labels, head)).mean(dim=1).tolist()
            for name, (x, head) in sides.items()
        }


class DemoSizes(NamedTuple):
    """Of the training of the demo's models, where they are not there already, and of what is looked at.

    The student learns all kinds of question too: it stands for one late in interaction. One that only
    reads finds the teacher's shallowest layer the nearest, whatever the codec.
    """

    prepare: PrepareSettings = PrepareSettings(
        teacher_training={"vision_steps": 200, "reading_steps": 100, "answering_steps": 100},
        backbone_training={"vision_steps": 200, "reading_steps": 100, "answering_steps": 100},
        train_samples=256,
        test_samples=256,
    )
    verbalizer_steps: int = 60
    samples: int = 256


QUICK_DEMO = DemoSizes(
    PrepareSettings(
        teacher={"layers": 4, "width": 32, "heads": 2, "key_value_heads": 2, "mlp_width": 64},
        backbone={"layers": 3, "width": 16, "heads": 2, "key_value_heads": 2, "mlp_width": 32, "tied": True},
        teacher_training={"vision_steps": 1, "reading_steps": 1},
        backbone_training={"vision_steps": 1, "reading_steps": 1},
        train_samples=16,
        test_samples=8,
    ),
    verbalizer_steps=2,
    samples=8,
)


def of_demo(sizes: DemoSizes, folder: Path, prepared: Path | None = None) -> Said:
    """From the digits models in `prepared`, or from ones that are trained now, with less patience."""
    if prepared is None:
        prepared = Path(_execute(prepare.run, folder / "prepared", sizes.prepare.model_dump()))
    teacher, student = str(prepared / "teacher"), str(prepared / "backbone")
    verbalized = _verbalize(teacher, student, str(prepared / "train.jsonl"), sizes.verbalizer_steps, folder)
    encoder = Encoder(load_processor(teacher, FLOAT32), Preprocessing())
    encoded, _ = encode_all(encoder, read_samples(prepared / "test.jsonl")[0][: sizes.samples])
    speakers = [
        (Backbone.load(place, FLOAT32), Verbalizers.load(verbalized / file))
        for place, file in ((teacher, TEACHER_VERBALIZERS_FILE), (student, STUDENT_VERBALIZERS_FILE))
    ]
    return _listen(encoded, speakers, encoder.real_vocabulary, encoder.pad_id)


def train_large_vocabulary(sizes: large_vocabulary.Sizes, folder: Path) -> None:
    """Train its teacher and its student beside each other, each in a process."""
    context = get_context("spawn")
    arguments = [(sizes, role, str(folder)) for role in large_vocabulary.ROLES]
    processes = [context.Process(target=large_vocabulary.train, args=of_one) for of_one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def of_large_vocabulary(sizes: large_vocabulary.Sizes, folder: Path, samples: int, response_tokens: int) -> Said:
    """From the models that were trained into `folder`."""
    encoded = large_vocabulary.held_out(sizes, samples, response_tokens)
    trained = [large_vocabulary.load(sizes, role, str(folder)) for role in large_vocabulary.ROLES]
    return _listen(encoded, [(one.backbone, one.verbalizers) for one in trained], sizes.vocabulary, pad_id=0)


def widened(states: Tensor, width: int) -> Tensor:
    """[T, N, d] states of a trained model as [T, N, width] ones with channels like theirs.

    Each channel is one of the trained ones, read from another token on, so that no two are alike, with a
    gain of its own: every number keeps the distribution that training gave it.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, channels = states.shape[1:]
    which = torch.randint(channels, (width,), generator=generator)
    shift = torch.randint(tokens, (width,), generator=generator)
    gains = (GAIN_SPREAD * torch.randn(width, generator=generator)).exp()
    rows = (torch.arange(tokens)[:, None] + shift) % tokens
    return states[:, rows, which] * gains


def _verbalize(teacher: str, student: str, samples: str, steps: int, folder: Path) -> Path:
    """Train verbalizers on all blocks but the last of both models, as the stages do."""
    common: dict[str, Any] = {"model": FLOAT32.model_dump()}
    settings = common | {"target_layers": _all_but_the_last(teacher), "fraction": 1.0}
    captured = _execute(capture.run, folder / "capture", settings, teacher=teacher, samples=samples)
    schedule = {"steps": steps, "batch_size": 32, "learning_rate": 1e-3}
    settings = common | {"target_layers": _all_but_the_last(student), "schedule": schedule}
    inputs = {"capture": captured, "student": student, "samples": samples}
    return Path(_execute(verbalization.run, folder / "verbalization", settings, **inputs))


def _execute(run: Run, output: Path, settings: dict[str, Any], **inputs: str) -> str:
    """A stage in this process, and where its artifact lies."""
    stage = run.__module__.rpartition(".")[2]
    job = Job(stage=stage, settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})
    execute(job, run)
    return job.output


def _all_but_the_last(place: str) -> tuple[int, ...]:
    return tuple(range(AutoConfig.from_pretrained(place).text_config.num_hidden_layers - 1))


def _listen(encoded: list[Encoded], speakers: list[tuple[Backbone, Verbalizers]], vocabulary: int, pad_id: int) -> Said:
    """What a teacher and a student say."""
    teacher, student = (_say(encoded, *speaker, pad_id) for speaker in speakers)
    return Said(encoded, teacher, student, *(backbone.readout.head_rows(vocabulary) for backbone, _ in speakers))


@torch.no_grad()
def _say(encoded: list[Encoded], backbone: Backbone, verbalizers: Verbalizers, pad_id: int) -> Tensor:
    """[layers, N, d], the samples in their own order."""
    of_sample: dict[str, Tensor] = {}
    for indices in pack([len(sample.input_ids) for sample in encoded], max_tokens=2_048):
        group = [encoded[index] for index in indices]
        states = backbone.states(collate(group, pad_id), verbalizers.target_layers)
        said = torch.stack(verbalizers(states.targets, backbone.norm))
        pieces = said.split([len(sample.response_ids) for sample in group], dim=1)
        of_sample |= {sample.sample.id: piece for sample, piece in zip(group, pieces, strict=True)}
    return torch.cat([of_sample[sample.sample.id] for sample in encoded], dim=1)
