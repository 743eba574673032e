"""Optical flow between two frames by DIS (Kroeger et al., ECCV 2016), from OpenCV."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

SMALLEST = 16  # pixels a side; on less DIS chooses its scales by the width alone and may crash


def dis_optical_flow(source: Tensor, target: Tensor) -> Tensor:
    """Returns the optical flow between two frames, DIS at its medium preset. Small frames are padded with their edges.

    Args:
        source: (3, H, W) in [-1, 1].
        target: (3, H, W) in [-1, 1].

    Returns:
        (2, H, W) offset in pixels, x first, from each pixel of source to its place in target.
    """
    import cv2  # ComfyUI does not install it

    height, width = source.shape[1:]
    images = [rearrange(x.float(), "C H W -> H W C").add(1).mul(127.5).round().clamp(0, 255).byte().cpu().numpy() for x in (source, target)]
    padding = (0, max(0, SMALLEST - height)), (0, max(0, SMALLEST - width))
    grey = [np.pad(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), padding, mode="edge") for image in images]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    offsets = dis.calc(*grey, None)[:height, :width]  # pyright: ignore[reportCallIssue]  None: no flow to start from
    return rearrange(torch.from_numpy(offsets), "H W C -> C H W").to(source.device)
