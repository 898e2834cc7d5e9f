"""From descriptor to network: `plan` infers all by integer arithmetic, `network.build` makes torch modules of it.

Importing this package does not import torch; `nord_hpc.builder.network` does.
"""

from nord_hpc.builder.heads import Head
from nord_hpc.builder.joins import SizePolicy
from nord_hpc.builder.plan import NetworkPlan, Step, plan

__all__ = ["Head", "NetworkPlan", "SizePolicy", "Step", "plan"]
