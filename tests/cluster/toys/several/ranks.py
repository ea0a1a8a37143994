"""Two processes in one pod."""

from flytekit import task, workflow
from flytekitplugins.kfpytorch import Elastic


@task(task_config=Elastic(nnodes=1, nproc_per_node=2, increase_shared_mem=False))
def added(n: int) -> int:
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    share = torch.tensor(n + distributed.get_rank())
    distributed.all_reduce(share)
    distributed.destroy_process_group()
    return int(share)


@workflow
def together(n: int) -> int:
    return added(n=n)
