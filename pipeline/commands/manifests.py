"""`vlsi manifests`: the stages as RayJobs, to be applied by other hands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, out
from pipeline.config import ConfigError
from pipeline.execution import KubeRay
from pipeline.manifests import kustomization, rayjobs, to_yaml
from pipeline.session import Session
from stages.contract.place import write_whole

EPILOG = (
    "Try: [bold]vlsi manifests interaction executor=kuberay | kubectl apply -f -[/] · "
    "[bold]vlsi manifests executor=kuberay --output k8s/digits[/]. " + EXIT_CODES
)


def manifests(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE] [KEY=VALUE]",
            help="A stage or node, else all of them; with changes to the configuration.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a file for each, and a kustomization.yaml, there.")
    ] = None,
) -> None:
    """Print the RayJobs that executor=kuberay would create; runs nothing.

    They are the same whenever the configuration, the models and the data are.
    """
    names = [argument for argument in arguments or [] if "=" not in argument]
    session = Session.open([argument for argument in arguments or [] if "=" in argument])
    settings = session.experiment.executor
    if not isinstance(settings, KubeRay):
        raise ConfigError(f"executor: {settings.kind} makes no RayJobs; add executor=kuberay")
    nodes = [node for name in names for node in session.graph.named(name)] or session.graph.nodes
    texts = {name: to_yaml(rayjob) for name, rayjob in rayjobs(nodes, settings).items()}
    if output is None:
        typer.echo("---\n".join(texts.values()), nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    for name, text in (texts | {"kustomization.yaml": to_yaml(kustomization(list(texts)))}).items():
        write_whole(output / name, text)
    screen.show_files(out, {"manifests": output})
