"""Both sides of model FLOPs utilization (MFU): the operations of a training step, and the peak rates of GPUs."""

from dataclasses import dataclass

# Operations a second of dense matrix products in bfloat16 with sums in float32, from NVIDIA's data sheets and white papers, by the whole
# name that CUDA gives the device. Hopper's data sheets give the rate with sparsity, twice the dense one.
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 1979e12 / 2,  # SXM
    "NVIDIA H100 PCIe": 1513e12 / 2,
    "NVIDIA H100 NVL": 1671e12 / 2,
    "NVIDIA H200": 1979e12 / 2,  # SXM
    "NVIDIA H200 NVL": 1671e12 / 2,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}
H100_FLOPS, RTX_4090_FLOPS = PEAK_FLOPS["NVIDIA H100 80GB HBM3"], PEAK_FLOPS["NVIDIA GeForce RTX 4090"]


@dataclass(frozen=True)
class Work:
    """What a step computes, over all processes.

    Attributes:
        samples: Number of samples.
        tokens: Tokens of the transformer.
        flops: Operations of the networks' forward and backward passes; what is recomputed is no work.
    """

    samples: int
    tokens: float = float("nan")
    flops: float = float("nan")


def peak_flops(name: str) -> float:
    """Returns the peak rate of a device in operations a second, NaN for an unknown one, a part of a GPU (MIG) among them.

    Args:
        name: The name that CUDA gives it.
    """
    return PEAK_FLOPS.get(name, float("nan"))
