"""Which nodes exist, what they read, and which of them are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError, load
from pipeline.graph import Graph, Node, build_graph, prepare_graph
from pipeline.identity import Digests

pytestmark = pytest.mark.usefixtures("world")


def graph_of(*overrides: str) -> Graph:
    """The graph of the digits experiment with changes."""
    configuration = load(overrides)
    return build_graph(configuration, Digests(Path(configuration.main.store)))


def inputs_of(graph: Graph, key: str) -> dict[str, str]:
    """Names of a node's inputs, and the nodes they are; `outside` for what is none."""
    (node,) = [node for node in graph.nodes if node.key == key]
    return {name: source.key if isinstance(source, Node) else "outside" for name, source in node.inputs.items()}


def test_the_whole_chain() -> None:
    graph = graph_of("~variants")
    assert [node.key for node in graph.nodes] == [
        "capture",
        "verbalization",
        "precompute",
        "interaction",
        "reinforcement",
        "evaluation",
        "evaluation@teacher",
        "evaluation@backbone",
    ]
    assert inputs_of(graph, "interaction") == {
        "student": "outside",
        "samples": "outside",
        "verbalization": "verbalization",
        "precompute": "precompute",
    }
    assert inputs_of(graph, "reinforcement")["student"] == "interaction"
    assert inputs_of(graph, "evaluation")["model"] == "reinforcement"
    assert inputs_of(graph, "evaluation@teacher")["model"] == "outside"


def test_inputs_come_before_what_uses_them() -> None:
    seen: set[str] = set()
    for node in graph_of().nodes:
        assert {source.key for source in node.upstream} <= seen
        seen.add(node.key)


def test_variants_share_what_is_the_same() -> None:
    graph = graph_of()
    assert {node.key for node in graph.nodes if node.stage in ("capture", "verbalization")} == {
        "capture",
        "verbalization",
    }
    assert inputs_of(graph, "precompute@last-layer-kd")["capture"] == "capture"
    assert list(graph.targets) == ["teacher", "backbone", "sft", "last-layer-kd", "vlsi"]


def test_a_variant_that_changes_nothing_is_the_experiment_itself() -> None:
    graph = graph_of("variants={same: ['seed=0']}")
    assert graph.targets["same"] is graph.targets["vlsi"]


def test_without_interaction_nothing_upstream_of_it_exists() -> None:
    graph = graph_of("~variants", "interaction=null")
    assert [node.stage for node in graph.nodes] == ["reinforcement", "evaluation", "evaluation", "evaluation"]
    assert inputs_of(graph, "reinforcement")["student"] == "outside"


@pytest.mark.parametrize(
    ("losses", "inputs"),
    [
        ("{intermediate: kl, last: kl}", {"verbalization", "precompute"}),
        ("{intermediate: ce, last: ce}", {"verbalization"}),
        ("{intermediate: none, last: kl}", {"precompute"}),
        ("{intermediate: none, last: ce}", set()),
    ],
)
def test_losses_decide_what_interaction_reads(losses: str, inputs: set[str]) -> None:
    graph = graph_of("~variants", f"interaction.losses={losses}")
    assert set(inputs_of(graph, "interaction")) == {"student", "samples"} | inputs


def test_a_cache_of_the_last_layer_needs_no_verbalizer() -> None:
    graph = graph_of("~variants", "interaction.losses.intermediate=none", "precompute.layers=last")
    assert "verbalization" not in inputs_of(graph, "precompute")
    assert "verbalization" not in {node.key for node in graph.nodes}


def test_the_teacher_is_evaluated_as_the_teacher_is_loaded() -> None:
    graph = graph_of("teacher.loading.dtype=bfloat16")
    dtypes = {name: node.settings.identity()["model"]["dtype"] for name, node in graph.targets.items()}
    assert dtypes == {name: "bfloat16" if name == "teacher" else "float32" for name in graph.targets}


@pytest.mark.parametrize(
    "override",
    [
        "executor.parallel_stages=7",
        "executor.resources.interaction={workers: 4}",
        "tracking.enabled=false",
        "capture.micro_batch_tokens=100",
        "teacher.loading.device_map=auto",
    ],
)
def test_resources_do_not_affect_identity(override: str) -> None:
    assert graph_of(override).fingerprint == graph_of().fingerprint


def test_paths_do_not_affect_identity(world: Path) -> None:
    before = graph_of().fingerprint
    (world / "store" / "prepared").rename(world / "prepared")
    assert graph_of(f"store={world}").fingerprint == before


def test_a_field_affects_its_stage_and_what_follows() -> None:
    before = {node.key: node.fingerprint for node in graph_of("~variants").nodes}
    after = {
        node.key: node.fingerprint for node in graph_of("~variants", "interaction.schedule.learning_rate=5e-4").nodes
    }
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"interaction", "reinforcement", "evaluation"}


def test_a_node_becomes_a_job() -> None:
    graph = graph_of()
    (node,) = [node for node in graph.nodes if node.key == "interaction"]
    job = node.job(load().main.executor.resources_of("interaction"))
    assert job.output == str(node.output)
    assert Path(job.inputs["precompute"]).name == node.identity["inputs"]["precompute"]
    assert type(job).model_validate_json(job.model_dump_json()) == job


def test_missing_models_say_how_to_get_them(world: Path) -> None:
    (world / "store" / "prepared" / "digits" / "teacher" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"^teacher.path: .*; run `vlsi prepare experiment=digits` to make it"):
        graph_of()
    with pytest.raises(ConfigError, match=r"^data.train: .* does not exist; set data.train to a file, "):
        graph_of("experiment=qwen2vl-2b-from-7b")


def test_an_experiment_without_preparation_says_what_has_to_exist() -> None:
    with pytest.raises(ConfigError, match=r"nothing to prepare(.|\n)*teacher.path: Qwen/Qwen2-VL-7B-Instruct"):
        prepare_graph(load(["experiment=qwen2vl-2b-from-7b"]).main)


def test_an_unknown_stage_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="stage 'training' is not part of this experiment; allowed: capture, "):
        graph_of().named("training")
