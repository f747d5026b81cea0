"""What several GPUs should give, on paper: computation and communication of a two-stage training step.

    PYTHONPATH=. python benchmarks/scaling.py

Arithmetic, not a measurement; docs/cluster.md explains it. Change the constants to those of your cluster.
"""

from dataclasses import dataclass

GFLOP, GB = 1e9, 1e9
GPU_FLOPS = 0.4 * 989e12
"""H100 SXM: 40 % of its dense bf16 peak, which large ViTs reach with fused attention."""
NVLINK = 0.8 * 450 * GB
"""Bytes a second that one GPU sends inside a node."""
NETWORKS = {"8 x 400 Gb/s InfiniBand": 0.8 * 8 * 50 * GB, "100 Gb/s Ethernet": 0.8 * 12.5 * GB}
"""Bytes a second that leave one node."""
GPUS_PER_NODE = 8
KEPT = 0.3
"""Share of the patches that stage 2 sees."""


@dataclass(frozen=True)
class Backbone:
    """A ViT as far as arithmetic goes."""

    name: str
    width: int
    depth: int
    batch: int
    """Images of one GPU."""
    patches: int = 37 * 37  # 518 px, patches of 14
    prefix: int = 5

    def forward_flops(self, kept: float = 1.0) -> float:
        """Of one image: 24 N D^2 for the matrices of a block (2 FLOPs each weight and token), 4 N^2 D for attention."""
        tokens = self.patches * kept + self.prefix
        return self.depth * (24 * tokens * self.width**2 + 4 * tokens**2 * self.width)

    @property
    def parameters(self) -> float:
        """Of the blocks: 12 D^2 each."""
        return 12 * self.depth * self.width**2

    def step_flops(self) -> float:
        """Of one image in the default recipe.

        Stage 1 sees the image and its second view; its weights are frozen but not its tokens, so its backward pass
        costs one forward pass: 2 * (1 + 1). Stage 2 sees the kept patches, forward and a backward pass of two.
        """
        return 4 * self.forward_flops() + 3 * self.forward_flops(KEPT)

    def seconds(self) -> float:
        """Computation of a step."""
        return self.batch * self.step_flops() / GPU_FLOPS

    def hidden_seconds(self) -> float:
        """Of these, those under which gradients travel: from the backward pass of stage 2 to that of stage 1."""
        backward = 2 * self.forward_flops(KEPT) / 2 + 2 * self.forward_flops()
        return self.batch * backward / GPU_FLOPS


def communication(model: Backbone, nodes: int, network: float) -> float:
    """Seconds of a ring all-reduce of stage 2's gradients in fp32: each link carries 2 (W - 1) / W of them."""
    world = nodes * GPUS_PER_NODE
    return 2 * (world - 1) / world * 4 * model.parameters / (NVLINK if nodes == 1 else network)


def main() -> None:
    """Print the table."""
    print("| model | images | compute (ms) | nodes | network | all-reduce (ms) | efficiency | without overlap |")
    print("|---|--:|--:|--:|---|--:|--:|--:|")
    for model in (Backbone("ViT-B/14", 768, 12, 32), Backbone("ViT-L/14", 1024, 24, 16)):
        step = model.seconds()
        for nodes, name in ((1, "NVLink"), *((nodes, name) for nodes in (2, 8) for name in NETWORKS)):
            travel = communication(model, nodes, NETWORKS.get(name, 0.0))
            hidden = step / (step + max(0.0, travel - model.hidden_seconds()))
            print(
                f"| {model.name} | {model.batch} | {1e3 * step:.0f} | {nodes} | {name} | {1e3 * travel:.1f} | "
                f"{hidden:.0%} | {step / (step + travel):.0%} |"
            )


if __name__ == "__main__":
    main()
