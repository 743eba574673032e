"""Optical flow between two frames, by DIS (Kroeger et al., ECCV 2016), as OpenCV has it."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

SMALLEST = 16  # pixels a side; on less DIS chooses its scales by the width alone and may crash


def dis_optical_flow(source: Tensor, target: Tensor) -> Tensor:
    """Returns the offset in pixels from each pixel of source to its place in target, (2, H, W), x first. DIS, medium preset.

    source, target: (3, H, W) in [-1, 1]. Small frames are padded by their edges.
    """
    import cv2  # ComfyUI does not install it

    height, width = source.shape[1:]
    images = [rearrange(x.float(), "C H W -> H W C").add(1).mul(127.5).round().clamp(0, 255).byte().cpu().numpy() for x in (source, target)]
    padding = (0, max(0, SMALLEST - height)), (0, max(0, SMALLEST - width))
    grey = [np.pad(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), padding, mode="edge") for image in images]
    offsets = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)[:height, :width]
    return rearrange(torch.from_numpy(offsets), "H W C -> C H W").to(source.device)
