"""Runs an entry script with Accelerate's own FSDP2 in CPU processes, which it keeps for GPUs.

    FSDP_VERSION=2 … python -m torch.distributed.run … tests/fsdp_on_cpu.py train/e2e.py …

Everything but the decision to shard is as on GPUs. In the end it prints how many modules of which
class were sharded.
"""

import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed.fsdp
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_init = AcceleratorState.__init__
_fully_shard = torch.distributed.fsdp.fully_shard
sharded = Counter[str]()


def _init_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **rest)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _counted(module: Any, **options: Any) -> Any:
    sharded[type(module).__name__] += 1
    return _fully_shard(module, **options)


if __name__ == "__main__":
    AcceleratorState.__init__ = _init_sharded
    torch.distributed.fsdp.fully_shard = _counted
    # Processes of the run get this path; here lies an `encodings` that would hide Python's own.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"sharded: {dict(sharded)}")
