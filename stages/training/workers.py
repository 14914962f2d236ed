"""How several workers train one student: each holds a whole copy (DDP), or a share of it (FSDP2)."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from stages.contract import Resources, StageError
from stages.training.objective import Objective


def distribute(objective: Objective, resources: Resources) -> tuple[Accelerator, nn.Module]:
    """Spread an objective over the workers.

    Accelerate finds the other workers and wraps the objective in autocast and DDP. FSDP2 is applied
    in place by torch, which does so on GPUs and CPUs alike; accelerate knows it on GPUs only.

    Returns:
        The accelerator, and the module to call.

    Raises:
        StageError: the workers do not see each other.
    """
    accelerator = Accelerator(mixed_precision="bf16" if objective.autocast else "no", cpu=not torch.cuda.is_available())
    expected = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if accelerator.num_processes != expected:
        raise StageError(f"this worker sees {accelerator.num_processes} workers, but there are {expected}")
    shards = resources.parallelism == "fsdp" and expected > 1
    if shards:
        _shard(objective, accelerator.device)
    module = accelerator.prepare_model(objective, device_placement=not shards, evaluation_mode=shards)
    return accelerator, module


def _shard(objective: Objective, device: torch.device) -> None:
    """Gather the classes the objective names one module at a time, all that stands beside them as one group."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if objective.autocast:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    names = objective.sharded_classes()
    for module in [m for m in objective.modules() if type(m).__name__ in names]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
