"""Remote experts: the experts of a mesh as a torch module, asked by gate scores, with deadlines, failover and shared messages.

``RemoteExperts`` has the interface of the in-process ``LocalExperts``. Gradients are off unless asked for: then outputs carry an autograd
node whose backward pass asks the same nodes for derivatives with respect to the features. Weights of remote experts are never changed.
"""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nmoe.moe.layer import ExpertOutputs, TopKExperts
from nmoe.node.expert_client import Answer, Call, ExpertClient
from nmoe.node.gradients import ask_gradients


class RemoteExperts(TopKExperts):
    """The experts of a mesh, with the interface of ``LocalExperts``.

    Args:
        client: asks them; not owned.
        deadline_s: what a call may take.
        gradients: let outputs carry gradients back to the features; the nodes must have been started with gradients allowed.
    """

    def __init__(self, client: ExpertClient, *, deadline_s: float = 1.0, gradients: bool = False) -> None:
        super().__init__()
        self.client = client
        self.deadline_s = deadline_s
        self.gradients = gradients

    def forward(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        """Ask the k best experts of each sample; see ``TopKExperts``.

        Weights are differentiable with respect to the scores.

        Raises:
            ValueError: when the shapes do not fit.
            MeshError: when some sample got no answer in time.
        """
        return self._outputs(self.client.call(self.call_for(features, k, scores=scores)), features, scores)

    async def ask(self, features: Float[Tensor, "batch dim"], scores: Float[Tensor, "batch expert"], *, k: int) -> ExpertOutputs:
        """Do as ``forward`` without blocking the event loop.

        Raises:
            ValueError: when the shapes do not fit.
            MeshError: when some sample got no answer in time.
        """
        return self._outputs(await self.client.acall(self.call_for(features, k, scores=scores)), features, scores)

    def call_for(self, features: Tensor, k: int, *, scores: Tensor | None = None, gate: nn.Module | None = None) -> Call:
        """Return the call for some samples, with their scores or with the gate that scores them.

        Raises:
            ValueError: when the shapes do not fit.
        """
        rules = self.client.dispatcher.origin.rules
        wanted = f"features [batch, {rules.in_dim}] and scores [batch, {len(rules.experts)}] wanted"
        if features.ndim != 2 or not len(features) or features.shape[1] != rules.in_dim:
            raise ValueError(f"{wanted}, got features {list(features.shape)}")
        if scores is not None and scores.shape != (len(features), len(rules.experts)):
            raise ValueError(f"{wanted}, got features {list(features.shape)} and scores {list(scores.shape)}")
        self.client.check(features.detach())
        return Call(
            features=features.detach().contiguous().numpy(),
            scores=None if scores is None else scores.detach().numpy(),
            gate=gate,
            k=k,
            due_s=time.monotonic() + self.deadline_s,
        )

    def _outputs(self, said: Answer, features: Tensor, scores: Tensor) -> ExpertOutputs:
        outputs, experts, weights = (torch.from_numpy(part) for part in said[:3])
        if scores.requires_grad and torch.is_grad_enabled():
            chosen = scores.gather(1, experts.clamp(min=0)).masked_fill(experts < 0, -torch.inf)
            weights = chosen.softmax(dim=1)
        if self.gradients and features.requires_grad and torch.is_grad_enabled():
            outputs = _Remote.apply(features, outputs, experts, self)  # type: ignore[no-untyped-call]  # torch's
        return ExpertOutputs(outputs=outputs, experts=experts, weights=weights)


class _Remote(torch.autograd.Function):
    """Passes outputs through, and gradients back through the nodes that computed them."""

    @staticmethod
    def forward(context: Any, features: Tensor, outputs: Tensor, experts: Tensor, layer: RemoteExperts) -> Tensor:
        context.save_for_backward(features, experts)
        context.layer = layer
        return outputs.clone()

    @staticmethod
    def backward(context: Any, gradients: Tensor) -> tuple[Tensor, None, None, None]:
        features, experts = context.saved_tensors
        layer = context.layer
        derivative = ask_gradients(layer.client.dispatcher, features.detach().numpy(), experts.numpy(), gradients.numpy(), layer.deadline_s)
        return torch.from_numpy(derivative), None, None, None


class RemoteMixture(nn.Module):
    """A gate here and its experts in a mesh: a mixture-of-experts layer, [batch, dim] to [batch, out].

    Args:
        gate: scores [batch, expert] of features.
        experts: asked by these scores.
        k: experts per sample.
    """

    def __init__(self, *, gate: nn.Module, experts: RemoteExperts, k: int) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.k = k

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Return the mixture's output. Without gradients, concurrent calls share one run of the gate and one journey.

        Raises:
            MeshError: when some sample got no answer in time.
        """
        if torch.is_grad_enabled():
            return self.experts.forward(features, self.gate(features), k=self.k).mixed()
        return _mixed(self.experts.client.call(self.experts.call_for(features, self.k, gate=self.gate)))

    async def ask(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Do as ``forward`` without blocking the event loop.

        Raises:
            MeshError: when some sample got no answer in time.
        """
        if torch.is_grad_enabled():
            return (await self.experts.ask(features, self.gate(features), k=self.k)).mixed()
        return _mixed(await self.experts.client.acall(self.experts.call_for(features, self.k, gate=self.gate)))


def _mixed(said: Answer) -> Tensor:
    assert said.mixed is not None  # it brought a gate
    return torch.from_numpy(said.mixed)
