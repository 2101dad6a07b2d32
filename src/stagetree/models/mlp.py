"""The MLP: a plain module, and K of them packed side by side, with their forward and backward passes and dropout masks.

A pack holds each layer's weights as `(K, in, out)`, so that one batched product serves all members and gradients come
out contiguous. On the CPU at one thread `torch.baddbmm` gives a member the same bits for every K and any neighbours;
one wide product over all members would not.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagetree.models.layers import ACTIVATIONS, list_layers
from stagetree.storage.checkpoints import State

PAGE = 1024
"""Floats in a page of memory."""
PAD = 16
"""Floats in a line of the cache."""


def sequential(in_features: int, n_classes: int, **model: Any) -> nn.Sequential:
    """Build the plain module: it takes float32 `(b, in_features)` and gives logits `(b, n_classes)`.

    Weight files use its `state_dict` names.

    Args:
        in_features: as for `list_layers`, like the others.
        n_classes: outputs.
        model: the model group's settings.
    """
    layers = list_layers(in_features, n_classes, **model)
    return nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in layers))


def initial_state(seed: int, in_features: int, n_classes: int, model: Mapping) -> State:
    """Draw the weights that `torch.manual_seed(seed)` and plain `nn.Linear` layers give; global state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sequential(in_features, n_classes, **model).state_dict()


class Layer(NamedTuple):
    """The tensors of a layer's forward pass that its backward pass needs."""

    x: Tensor
    z: Tensor
    """Before the activation."""
    out: Tensor
    """After it, before dropout."""
    mask: Tensor | None


class Pack:
    """K MLPs of one shape.

    Args:
        states: of the members, as `state` returns them.
        activation: between layers.
        dropout: after each hidden layer, in training.
        device: of the weights.
        spaced: keep the rows of large weights apart in memory: quicker on the CPU, but then not contiguous.

    Attributes:
        parameters: for each layer the weight `(K, in, out)` and the bias `(K, 1, out)`, float32.
    """

    def __init__(
        self,
        states: Sequence[State],
        *,
        activation: str,
        dropout: float,
        device: torch.device | str = "cpu",
        spaced: bool = False,
    ):
        # by layer, the weight before the bias, whatever order a file gave them
        self.names = sorted(states[0], key=lambda name: (int(name.split(".")[0]), name.endswith("bias")))
        self._activate = getattr(F, activation)
        self._derivative = partial(ACTIVATIONS[activation].backward, torch.ops.aten)
        self.dropout = dropout
        self.parameters = []
        for name in self.names:
            stacked = torch.stack([_transpose(state[name]) for state in states]).to(device)
            self.parameters.append(_spaced(stacked) if spaced else stacked)

    def __len__(self) -> int:
        return len(self.parameters[0])

    def state(self, k: int) -> State:
        """Copy one member's weights, named and laid out as in `sequential`."""
        members = (parameter[k].t() for parameter in self.parameters)
        # A bias is (1, out) here: its transpose (out, 1) loses the last axis again.
        return {
            name: (member if name.endswith("weight") else member[:, 0]).contiguous().cpu()
            for name, member in zip(self.names, members, strict=True)
        }

    def forward(self, x: Tensor, *, masks: Sequence[Tensor] = (), tape: list[Layer] | None = None) -> Tensor:
        """Compute logits `(K, b, n_classes)` of inputs `(K, b, in_features)`; autograd does not follow.

        Args:
            x: float32; may be expanded over members.
            masks: for each hidden layer, as `masks` draws them; none: no dropout.
            tape: receives each layer, for `backward`.
        """
        layers = len(self.parameters) // 2
        for i in range(layers):
            out = z = torch.baddbmm(self.parameters[2 * i + 1], x, self.parameters[2 * i])
            mask = None
            if i < layers - 1:
                out = self._activate(z)
                mask = masks[i] if masks else None
            if tape is not None:
                tape.append(Layer(x, z, out, mask))
            x = out if mask is None else out * mask
        return x

    def backward(self, tape: Sequence[Layer], grad: Tensor, lr: Tensor | None = None) -> list[Tensor]:
        """Go back through the layers, with the kernels that autograd would use.

        Written out, since a step of a small MLP is mostly the work around its products: without autograd 0.75 instead
        of 0.95 ms (MNIST 784-300-10, 2 members, batch 32, one thread). Plain SGD's update is folded into the product
        that makes the weight gradient, which saves writing that gradient and reading it and the weights again.

        Args:
            tape: of the forward pass.
            grad: of the logits `(K, b, n_classes)`.
            lr: `(K, 1, 1)`; if given, the parameters are updated in place by plain SGD.

        Returns:
            The parameters' gradients; empty if `lr` is given.
        """
        grads: list[Tensor] = []
        for i in reversed(range(len(tape))):
            x, z, out, mask = tape[i]
            weight, bias = self.parameters[2 * i : 2 * i + 2]
            if i < len(tape) - 1:
                grad = self._derivative(grad if mask is None else grad * mask, z, out)
            below = torch.bmm(grad, weight.transpose(1, 2)) if i else grad  # before the weight changes
            if lr is None:
                grads = [torch.bmm(x.transpose(1, 2), grad), grad.sum(1, keepdim=True), *grads]
            else:
                step = grad * lr
                weight.baddbmm_(x.transpose(1, 2), step, alpha=-1)
                bias.sub_(step.sum(1, keepdim=True))
            grad = below
        return grads

    def masks(self, b: int, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Draw inverted dropout masks for a minibatch: for each hidden layer `(K, b, h)` of 0 or `1 / (1 - p)`.

        Args:
            b: images.
            generators: one for each member; members that share one see equal masks.
        """
        hidden = [bias.shape[2] for bias in self.parameters[1:-1:2]] if self.dropout else []
        layers = []
        for h in hidden:
            drawn: dict[torch.Generator, Tensor] = {}
            for generator in dict.fromkeys(generators):
                mask = torch.empty(b, h, device=generator.device).bernoulli_(1 - self.dropout, generator=generator)
                drawn[generator] = mask.div_(1 - self.dropout)
            layers.append(torch.stack([drawn[generator] for generator in generators]))
        return layers


def _spaced(stacked: Tensor) -> Tensor:
    """Move the rows of `(K, in, out)` apart where each would begin at the same place of a page of memory.

    Such rows share few lines of the cache: 3072 x 2048 at batch 128 took 13.2 ms forward, and 7.6 with the pad, with
    the same bits.
    """
    k, n_in, n_out = stacked.shape
    if n_in == 1 or n_out % PAGE:
        return stacked
    return stacked.new_empty(k, n_in, n_out + PAD)[..., :n_out].copy_(stacked)


def _transpose(value: Tensor) -> Tensor:
    return value.t() if value.dim() == 2 else value.unsqueeze(0)
