"""Run torch.optim on the members of a pack: each keeps its own learning rate, settings and state."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagetree.storage.checkpoints import State

CLASSES = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
FUSED = {"sgd", "adam", "adamw"}  # torch.optim has these as one kernel; on the CPU Adagrad too
# these have torch.optim's option for CUDA graphs
CAPTURABLE = {"adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adadelta"}


class PackOptimizer:
    """One torch.optim optimizer with a parameter group for each member.

    The groups' parameters are views that share storage with the pack's stacked tensors.

    Args:
        parameters: the pack's stacked tensors `(K, ...)`, updated in place.
        settings: for each member the optimizer group's settings, all of one name.
        lrs: for each member.
    """

    def __init__(self, parameters: Sequence[Tensor], settings: Sequence[Mapping[str, Any]], lrs: Sequence[float]):
        name = settings[0]["name"]
        self.members = [[nn.Parameter(stacked[k]) for stacked in parameters] for k in range(len(lrs))]
        on_cuda = parameters[0].device.type == "cuda"
        options = {"fused": True} if name in FUSED or (name == "adagrad" and not on_cuda) else {}
        if on_cuda and name in CAPTURABLE:
            options["capturable"] = True
            # the steps before a graph is recorded are meant
            warnings.filterwarnings("ignore", message=".*without CUDA graph capture")
        # each member's settings go through the constructor: some of torch.optim's read them there, not from groups
        alone = [
            CLASSES[name](views, lr=lr, **{key: value for key, value in own.items() if key != "name"}, **options)
            for views, own, lr in zip(self.members, settings, lrs, strict=True)
        ]
        self.optimizer = CLASSES[name]([group for one in alone for group in one.param_groups], **options)
        for one in alone:
            self.optimizer.state.update(one.state)
        self.capturable = on_cuda and (name in CAPTURABLE or name == "sgd")
        """Whether `step` can be part of a CUDA graph."""

    def step(self, grads: Sequence[Tensor]) -> None:
        """Update all members from the stacked gradients."""
        for k, views in enumerate(self.members):
            for view, grad in zip(views, grads, strict=True):
                # fused kernels give silently wrong updates for gradients that are not contiguous (torch 2.14.1)
                view.grad = grad[k].to(view.dtype).contiguous()
        self.optimizer.step()

    def state(self, k: int) -> State:
        """Copy one member's state, named `<parameter index>.<torch.optim's name>`; empty if it has none."""
        return {
            f"{index}.{name}": value.detach().clone().cpu()
            for index, view in enumerate(self.members[k])
            for name, value in self.optimizer.state.get(view, {}).items()
            if value is not None
        }

    def load(self, k: int, state: State) -> None:
        """Give one member the state that `state` returned, of the same shapes."""
        for key, value in state.items():
            index, name = key.split(".", 1)
            view = self.members[k][int(index)]
            # torch.optim keeps step counts and the like on the CPU, but for CUDA graphs
            device = "cpu" if value.dim() == 0 and not self.capturable else view.device
            self.optimizer.state[view][name] = value.to(device, copy=True)
