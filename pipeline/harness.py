"""Other people's harnesses: the exact command that evaluates the exported student with them.

lmms-eval (repository EvolvingLMMs-Lab/lmms-eval) names models and tasks in its folders `models` and `tasks`;
VLMEvalKit (repository open-compass/VLMEvalKit) is told by a configuration file, see its docs/en/ConfigSystem.md.
Both download the benchmarks themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.config import ConfigError

HARNESSES = ("lmms-eval", "vlmevalkit")
_LMMS_MODELS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
}
_LMMS_TASKS = {
    "mmbench": "mmbench_en_dev",
    "mm-vet": "mmvet",
    "mmmu": "mmmu_val",
    "mathvista": "mathvista_testmini_format",
    "ai2d": "ai2d",
    "chartqa": "chartqa",
    "mmstar": "mmstar",
    "blink": "blink",
    "scienceqa": "scienceqa_img",
    "pope": "pope",
}
_KIT_MODELS = {
    "qwen2_vl": "Qwen2VLChat",
    "qwen2_5_vl": "Qwen2VLChat",
    "llava_onevision": "LLaVA_OneVision_HF",
}
_KIT_DATA = {
    "mmbench": ("MMBench_DEV_EN", "ImageMCQDataset"),
    "mm-vet": ("MMVet", "MMVet"),
    "mmmu": ("MMMU_DEV_VAL", "MMMUDataset"),
    "mathvista": ("MathVista_MINI", "MathVista"),
    "ai2d": ("AI2D_TEST", "ImageMCQDataset"),
    "chartqa": ("ChartQA_TEST", "ImageVQADataset"),
    "mmstar": ("MMStar", "ImageMCQDataset"),
    "blink": ("BLINK", "ImageMCQDataset"),
    "scienceqa": ("ScienceQA_TEST", "ImageMCQDataset"),
    "pope": ("POPE", "ImageYORNDataset"),
}


def lmms_eval_command(
    student: str, model_type: str, benchmarks: Sequence[str], num_beams: int, output: str
) -> list[str]:
    """What runs lmms-eval in this Python.

    Args:
        student: the exported checkpoint.
        model_type: as its `config.json` calls it.
        benchmarks: by our names; none means all.
        num_beams: 1 decodes greedily.
        output: the folder that its results go to.

    Raises:
        ConfigError: it has no such model or benchmark.
    """
    tasks = [_known(_LMMS_TASKS, name, "benchmark", "lmms-eval") for name in benchmarks or _LMMS_TASKS]
    return [
        *(sys.executable, "-m", "lmms_eval"),
        *("--model", _known(_LMMS_MODELS, model_type, "model", "lmms-eval")),
        *("--model_args", f"pretrained={student}"),
        *("--tasks", ",".join(tasks)),
        *("--batch_size", "1"),
        *(("--gen_kwargs", f"num_beams={num_beams}") if num_beams > 1 else ()),
        "--log_samples",
        *("--output_path", output),
    ]


def vlmevalkit_configuration(student: str, model_type: str, benchmarks: Sequence[str]) -> str:
    """The configuration file for `python run.py --config FILE` in a checkout of VLMEvalKit, as JSON.

    Raises:
        ConfigError: it has no such model or benchmark.
    """
    kind = _known(_KIT_MODELS, model_type, "model", "VLMEvalKit")
    data: dict[str, Any] = {}
    for name in benchmarks or _KIT_DATA:
        title, dataset = _known(_KIT_DATA, name, "benchmark", "VLMEvalKit")
        data[title] = {"class": dataset, "dataset": title}
    return json.dumps({"model": {"vlsi": {"class": kind, "model_path": student}}, "data": data}, indent=2)


def _known(table: dict[str, Any], name: str, what: str, harness: str) -> Any:
    if name not in table:
        raise ConfigError(
            f"--harness {harness}: {name!r} is no {what} it is known to have; allowed: {', '.join(table)}"
        )
    return table[name]
